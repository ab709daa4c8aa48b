"""Connect the study to Ray Tune, which runs the trials; the study alone decides what to try and when to stop."""

import logging
import time
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from lakd_ray import storage
from lakd_ray.cluster import RoomWait
from lakd_ray.config import ClusterConfig
from lakd_ray.launch.event_log import format_duration
from lakd_ray.runs.layout import trial_id
from lakd_ray.tune.study import Study
from lakd_ray.tune.trial import ERROR_FILE

OBJECTIVE = "objective"
_START_S = 30.0  # in which a trial with free resources starts on a busy machine

logger = logging.getLogger(__name__)


class StudySearcher(Searcher):
    """Passes the study's trials to Ray Tune, and their end to the study.

    Args:
        study: the study.
        folder: folder of the tune stage, where trials write the causes of their failures.
    """

    def __init__(self, study: Study, folder: str) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self.study, self._folder = study, folder
        self.trial_numbers: dict[str, int] = {}
        """The study's number of each of Ray's trials."""
        self.stopped_trials: set[int] = set()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the next trial; called by Ray Tune when it has resources for one."""
        number, settings = self.study.next_trial()
        self.trial_numbers[trial_id] = number
        return {"number": number, "settings": settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial; called by Ray Tune, also for stopped trials."""
        number = self.trial_numbers[trial_id]
        if error:
            self.study.fail_trial(number, self._failure_cause(number))
        else:
            self.study.finish_trial(number, (result or {}).get("cost"), stopped=number in self.stopped_trials)

    def _failure_cause(self, number: int) -> str:
        location = storage.join(self._folder, trial_id(number), ERROR_FILE)
        return str(storage.read_json(location)["cause"]) if storage.exists(location) else "its process was lost"

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the study stores itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, because the study stores itself."""


class StudyScheduler(FIFOScheduler):
    """Reports every epoch to the study, and stops the trials that the study prunes."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Ray
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Report an epoch and decide whether the trial continues; called by Ray Tune."""
        searcher = self._searcher
        number = searcher.trial_numbers[trial.trial_id]
        if searcher.study.report_epoch(number, result["epoch"], result[OBJECTIVE], result["audio_seconds"]):
            searcher.stopped_trials.add(number)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Ray Tune pickles the scheduler, and nothing reads it."""
        return {}


class ProgressCallback(tune.Callback):
    """Logs a line at the end of each trial: its settings, its result, the time left."""

    def __init__(self, searcher: StudySearcher, num_trials: int) -> None:
        self._searcher, self._num_trials, self._num_done = searcher, num_trials, 0
        self._started = time.perf_counter()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log the result of a trial; called by Ray Tune, also for stopped trials."""
        result, number = trial.last_result, self._trial_number(trial)
        end = "stopped" if number in self._searcher.stopped_trials else "trained"
        cost = "" if result.get("cost") is None else f"  cost {result['cost']:.4g}"
        settings = format_settings(trial.config["settings"])
        self._log_progress(
            f"#{number:<3} {settings}  objective {result.get(OBJECTIVE, 0):.3f}{cost}  "
            f"{end} {result.get('epoch', 0)} epochs"
        )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the search if the disk of the trial is full; called by Ray Tune when it starts a failed trial again."""
        self._check_full_disk(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Log the failure of a trial; called by Ray Tune after its retries."""
        self._check_full_disk(trial)
        self._log_progress(f"#{self._trial_number(trial):<3} {format_settings(trial.config['settings'])}  failed")

    def _check_full_disk(self, trial: Any) -> None:
        """Raise the error of a trial if its disk is full: a retry and the other trials would fail in the same way."""
        error = trial.get_pickled_error()
        if error is not None and (full := storage.find_full_disk(error)) is not None:
            raise full

    def _trial_number(self, trial: Any) -> int:
        return self._searcher.trial_numbers[trial.trial_id]

    def _log_progress(self, text: str) -> None:
        self._num_done += 1
        left = (time.perf_counter() - self._started) / self._num_done * (self._num_trials - self._num_done)
        logger.info(f"trial {self._num_done:>3}/{self._num_trials}  {text}  {format_duration(left)} left")


class WaitingCallback(tune.Callback):
    """Logs a line while no trial runs because other jobs use the cluster, and ends the search at the deadline.

    Args:
        needed: the resources of a trial in words.
        cluster: has the deadline.
    """

    def __init__(self, needed: str, cluster: ClusterConfig) -> None:
        self._needed, self._cluster = needed, cluster
        self._wait: RoomWait | None = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check the trials; called by Ray Tune in each round of its loop."""
        states = {trial.status for trial in trials}
        if "PENDING" not in states or "RUNNING" in states:
            self._wait = None
            return
        self._wait = self._wait or RoomWait(self._needed, self._cluster, grace_s=_START_S)
        self._wait.report()


def format_settings(settings: dict[str, Any]) -> str:
    """Format settings by the last parts of their keys, such as `lam 0.25  temperature 5`."""
    return "  ".join(
        f"{key.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{key.rpartition('.')[2]} {value}"
        for key, value in settings.items()
    )
