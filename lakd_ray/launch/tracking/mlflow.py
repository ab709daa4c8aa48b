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
from lakd_ray.config import MlflowConfig as Section
from lakd_ray.launch.tracking.base import EpochMetrics, RunStatus, flatten_metrics, hyperparameters, run_tags
from lakd_ray.runs.graph import Run

RUN_ID_FILE = "mlflow.json"
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # who trains on what is not for others
}
_STATUS: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_PARAM_LENGTH = 500  # letters of a setting
_PARAMS_PER_CALL = 100  # settings in one call
_PROGRESS_METRIC = "dev/UR"  # a number that every epoch has


class MlflowTracker:
    """Tells an MLflow server."""

    name = "MLflow"

    def __init__(self, config: Section) -> None:
        self._config = config
        self._run_ids: dict[str, str] = {}
        self._client: Any = None

    def start_run(self, config: Experiment, run: Run) -> int:
        """Go on with a run there, or make one."""
        self._client = self._client or _build_client(self._config.uri)
        experiment = self._config.experiment or config.name
        known, identity = (
            storage.join(run.folder(config), RUN_ID_FILE),
            {"uri": self._config.uri, "experiment": experiment},
        )
        found = storage.read_json(known) if storage.exists(known) else {}
        if {key: found.get(key) for key in identity} == identity and self._is_active(found["run"]):
            self._run_ids[run.id] = found["run"]
            self._client.update_run(found["run"], status="RUNNING")
            return max((old.step for old in self._client.get_metric_history(found["run"], _PROGRESS_METRIC)), default=0)
        self._run_ids[run.id] = self._create_run(experiment, config, run)
        storage.write_json(known, {**identity, "run": self._run_ids[run.id]})
        return 0

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Send an epoch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [
            Metric(tag, value, now, epoch_metrics["epoch"]) for tag, value in flatten_metrics(epoch_metrics).items()
        ]
        self._client.log_batch(self._run_ids[run], metrics=numbers)

    def end_run(self, run: str, status: RunStatus) -> None:
        """Say how it ended."""
        self._client.set_terminated(self._run_ids.pop(run), _STATUS[status])

    def _is_active(self, run: str) -> bool:
        """Whether the server has the run still."""
        from mlflow.exceptions import MlflowException

        try:
            stage: str = self._client.get_run(run).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return stage == "active"

    def _create_run(self, experiment: str, config: Experiment, run: Run) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        made: str = self._client.create_run(where, tags=run_tags(config, run), run_name=run.id).info.run_id
        params = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in hyperparameters(config, run).items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(made, params=params[first : first + _PARAMS_PER_CALL])
        return made


def _build_client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds to load, and asks the environment

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
