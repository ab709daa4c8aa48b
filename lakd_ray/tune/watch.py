"""A line in the terminal whenever a trial ends."""

import time
from typing import Any

from ray import tune

from lakd_ray.train.watch import clock


class Table(tune.Callback):
    """Prints finished trials, how many are left and about how long they will take.

    Args:
        trials: number of trials of the whole search.
    """

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._done = 0
        self._started = time.perf_counter()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, also for trials that ASHA stopped."""
        self._done += 1
        result = trial.last_result
        left = (time.perf_counter() - self._started) / self._done * (self._trials - self._done)
        settings = "  ".join(f"{name} {value:.3g}" for name, value in trial.config.items())
        print(
            f"trial {self._done:>3}/{self._trials}  {settings}  best dev UR {result.get('best_dev_UR', 0):.3f} "
            f"after {result.get('epoch', 0)} epochs  {clock(left)} left",
            flush=True,
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has failed for good."""
        self._done += 1
        print(f"trial {self._done:>3}/{self._trials}  failed: {trial.error_file or 'no details'}", flush=True)
