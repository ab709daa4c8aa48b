"""How Ray Tune runs the study's trials: what to try and when to stop come from the study alone."""

import time
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from lakd_ray import storage
from lakd_ray.launch.progress import format_duration
from lakd_ray.runs.layout import trial_id
from lakd_ray.tune.study import Study
from lakd_ray.tune.trial import ERROR_FILE

OBJECTIVE = "objective"


class StudySearcher(Searcher):
    """Hands out the study's trials, and tells it how they ended.

    Args:
        folder: where trials leave why they failed.
    """

    def __init__(self, study: Study, folder: str) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self.study, self._folder = study, folder
        self.trial_numbers: dict[str, int] = {}
        """The study's number of each of Ray's trials."""
        self.stopped_trials: set[int] = set()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Called by Tune when there is room for a trial."""
        number, settings = self.study.next_trial()
        self.trial_numbers[trial_id] = number
        return {"number": number, "settings": settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called by Tune, also for trials that were stopped."""
        number = self.trial_numbers[trial_id]
        if error:
            self.study.fail_trial(number, self._failure_cause(number))
        else:
            self.study.finish_trial(number, (result or {}).get("cost"), stopped=number in self.stopped_trials)

    def _failure_cause(self, number: int) -> str:
        place = storage.join(self._folder, trial_id(number), ERROR_FILE)
        return str(storage.read_json(place)["cause"]) if storage.exists(place) else "its process was lost"

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept elsewhere."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class StudyScheduler(FIFOScheduler):
    """Tells the study of every epoch, and stops a trial that it would stop."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Ray
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Called by Tune after each epoch."""
        suggestions = self._searcher
        number = suggestions.trial_numbers[trial.trial_id]
        if suggestions.study.report_epoch(number, result["epoch"], result[OBJECTIVE], result["audio_seconds"]):
            suggestions.stopped_trials.add(number)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it with its own state, which nothing reads."""
        return {}


class ProgressCallback(tune.Callback):
    """A line in the terminal whenever a trial ends: its settings, how it did, the time left."""

    def __init__(self, searcher: StudySearcher, num_trials: int) -> None:
        self._searcher, self._num_trials, self._num_done = searcher, num_trials, 0
        self._started = time.perf_counter()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune, also for trials that were stopped."""
        result, number = trial.last_result, self._trial_number(trial)
        how = "stopped" if number in self._searcher.stopped_trials else "trained"
        cost = "" if result.get("cost") is None else f"  cost {result['cost']:.4g}"
        self._print_progress(
            f"#{number:<3} {format_settings(trial.config['settings'])}  objective {result.get(OBJECTIVE, 0):.3f}{cost}  "
            f"{how} {result.get('epoch', 0)} epochs"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune when a trial has failed for good."""
        self._print_progress(f"#{self._trial_number(trial):<3} {format_settings(trial.config['settings'])}  failed")

    def _trial_number(self, trial: Any) -> int:
        return self._searcher.trial_numbers[trial.trial_id]

    def _print_progress(self, text: str) -> None:
        self._num_done += 1
        left = (time.perf_counter() - self._started) / self._num_done * (self._num_trials - self._num_done)
        print(f"trial {self._num_done:>3}/{self._num_trials}  {text}  {format_duration(left)} left", flush=True)


def format_settings(settings: dict[str, Any]) -> str:
    """`lam 0.25  tau 0.1`: the keys' last parts."""
    return "  ".join(
        f"{key.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{key.rpartition('.')[2]} {value}"
        for key, value in settings.items()
    )
