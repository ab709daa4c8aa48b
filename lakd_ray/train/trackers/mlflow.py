"""MLflow: a run there for each run here, on the server that the experiment names.

Which run it is there stands in `mlflow.json` in the run's folder: a run that goes on is continued, one that is made
anew is another one.
"""

import logging
import os
import time
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.config import Mlflow as Section
from lakd_ray.runs import Run
from lakd_ray.train.trackers.base import Line, Outcome, scalars, settings, tags

KNOWN = "mlflow.json"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # who trains on what is not for others
}
_STATUS: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_LONGEST = 500  # letters of a setting
_AT_ONCE = 100  # settings in one call
_ALWAYS = "dev/UR"  # a number that every epoch has


class Mlflow:
    """Tells an MLflow server."""

    name = "MLflow"

    def __init__(self, section: Section) -> None:
        self._section = section
        self._ids: dict[str, str] = {}
        self._client: Any = None

    def open(self, config: Experiment, run: Run) -> int:
        """Go on with a run there, or make one."""
        self._client = self._client or _client(self._section.uri)
        experiment = self._section.experiment or config.name
        known, identity = storage.join(run.folder(config), KNOWN), {"uri": self._section.uri, "experiment": experiment}
        found = storage.read_json(known) if storage.exists(known) else {}
        if {key: found.get(key) for key in identity} == identity and self._alive(found["run"]):
            self._ids[run.id] = found["run"]
            self._client.update_run(found["run"], status="RUNNING")
            return max((old.step for old in self._client.get_metric_history(found["run"], _ALWAYS)), default=0)
        self._ids[run.id] = self._make(experiment, config, run)
        storage.write_json(known, {**identity, "run": self._ids[run.id]})
        return 0

    def epoch(self, run: str, line: Line) -> None:
        """Send an epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [Metric(tag, value, now, line["epoch"]) for tag, value in scalars(line).items()]
        self._client.log_batch(self._ids[run], metrics=numbers)

    def close(self, run: str, outcome: Outcome) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._ids.pop(run), _STATUS[outcome])

    def _alive(self, run: str) -> bool:
        """Whether the server has the run still."""
        from mlflow.exceptions import MlflowException

        try:
            stage: str = self._client.get_run(run).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return stage == "active"

    def _make(self, experiment: str, config: Experiment, run: Run) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        made: str = self._client.create_run(where, tags=tags(config, run), run_name=run.id).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in settings(config, run).items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(made, params=params[first : first + _AT_ONCE])
        return made


def _client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds to load, and asks the environment

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
