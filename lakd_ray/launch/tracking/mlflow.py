"""Log training runs to MLflow: one MLflow run for each training run, on the server that the experiment names.

The id of the MLflow run is stored in `mlflow.json` in the run's folder. A training run that resumes continues its
MLflow run; a training run that starts again after its folder was deleted gets a new one.
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
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what is trained here is private
}
_STATUS: dict[RunStatus, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MAX_PARAM_LENGTH = 500  # characters of a setting
_PARAMS_PER_CALL = 100  # settings in one call
_PROGRESS_METRIC = "dev/UR"  # a metric of every epoch


class MlflowTracker:
    """Logs runs to an MLflow server."""

    name = "MLflow"

    def __init__(self, config: Section) -> None:
        self._config = config
        self._run_ids: dict[str, str] = {}
        self._client: Any = None

    def start_run(self, config: Experiment, run: Run) -> int:
        """Resume the MLflow run of a training run, or create one."""
        self._client = self._client or _build_client(self._config.uri)
        experiment = self._config.experiment or config.name
        run_id_file = storage.join(run.folder(config), RUN_ID_FILE)
        server = {"uri": self._config.uri, "experiment": experiment}
        stored = storage.read_json(run_id_file) if storage.exists(run_id_file) else {}
        if {key: stored.get(key) for key in server} == server and self._is_active(stored["run"]):
            self._run_ids[run.id] = stored["run"]
            self._client.update_run(stored["run"], status="RUNNING")
            history = self._client.get_metric_history(stored["run"], _PROGRESS_METRIC)
            return max((metric.step for metric in history), default=0)
        self._run_ids[run.id] = self._create_run(experiment, config, run)
        storage.write_json(run_id_file, {**server, "run": self._run_ids[run.id]})
        return 0

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Send the metrics of an epoch to the server."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [
            Metric(tag, value, now, epoch_metrics["epoch"]) for tag, value in flatten_metrics(epoch_metrics).items()
        ]
        self._client.log_batch(self._run_ids[run], metrics=numbers)

    def end_run(self, run: str, status: RunStatus) -> None:
        """Set the final status of the MLflow run."""
        self._client.set_terminated(self._run_ids.pop(run), _STATUS[status])

    def _is_active(self, run: str) -> bool:
        """Return whether the server still has the run."""
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

        existing = self._client.get_experiment_by_name(experiment)
        experiment_id = existing.experiment_id if existing else self._client.create_experiment(experiment)
        run_id: str = self._client.create_run(experiment_id, tags=run_tags(config, run), run_name=run.id).info.run_id
        params = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in hyperparameters(config, run).items()]
        for first in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[first : first + _PARAMS_PER_CALL])
        return run_id


def _build_client(uri: str) -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient  # takes seconds to load, and reads the environment

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
