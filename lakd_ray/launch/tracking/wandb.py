"""Log training runs to Weights & Biases: one W&B run for each training run, sent directly or stored for `wandb sync`.

The id of the W&B run is stored in `wandb.json` in the run's folder. A training run that resumes continues its W&B run;
a training run that starts again after its folder was deleted gets a new one.
"""

import uuid
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.config import WandbConfig as Section
from lakd_ray.errors import ConfigError
from lakd_ray.launch.tracking.base import (
    EpochMetrics,
    RunStatus,
    StagingDir,
    flatten_metrics,
    hyperparameters,
    run_tags,
)
from lakd_ray.runs.graph import Run

WANDB_FOLDER, RUN_ID_FILE = "wandb", "wandb.json"
_TIMEOUT_S = 20.0


class WandbTracker:
    """Logs runs to Weights & Biases."""

    name = "Weights & Biases"

    def __init__(self, config: Section) -> None:
        self._config = config
        self._open_runs: dict[str, tuple[StagingDir, Any]] = {}
        self._ended_folders: list[StagingDir] = []

    def start_run(self, config: Experiment, run: Run) -> int:
        """Resume the W&B run of a training run, or create one. Offline files are written again completely."""
        import wandb  # takes seconds to load

        online = self._config.mode == "online"
        if online and not wandb.login(prompt=False):
            raise ConfigError("no API key: set WANDB_API_KEY where the driver runs, or tracking.wandb.mode: offline")
        folder = StagingDir(storage.join(config.folder, WANDB_FOLDER, run.id))
        wandb_run = wandb.init(
            entity=self._config.entity,
            project=self._config.project,
            group=config.name,
            id=_get_or_create_run_id(storage.join(run.folder(config), RUN_ID_FILE)),
            name=run.id,
            config=hyperparameters(config, run),
            tags=[f"{key}:{value}"[:64] for key, value in run_tags(config, run).items()],
            dir=str(folder.path),
            mode=self._config.mode,
            resume="allow" if online else None,
            reinit="create_new",  # several runs train in parallel
            settings=_wandb_settings(),
        )
        self._open_runs[run.id] = folder, wandb_run
        return max(0, int(wandb_run.starting_step) - 1)

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Log the metrics of an epoch."""
        _, wandb_run = self._open_runs[run]
        wandb_run.log(flatten_metrics(epoch_metrics), step=epoch_metrics["epoch"])

    def end_run(self, run: str, status: RunStatus) -> None:
        """End the W&B run and send its remaining data."""
        folder, wandb_run = self._open_runs.pop(run)
        self._ended_folders.append(folder)
        try:
            wandb_run.finish(exit_code=int(status != "finished"))
        finally:
            if not self._open_runs:
                self._close_ended_folders()

    def _close_ended_folders(self) -> None:
        """Close the folders of ended runs; `finish` returns while their files are still being written."""
        import wandb

        try:
            wandb.teardown()  # waits for all writers, therefore only when no run is open
        finally:
            while self._ended_folders:
                self._ended_folders.pop().close()


def _get_or_create_run_id(run_id_file: str) -> str:
    if not storage.exists(run_id_file):
        storage.write_json(run_id_file, {"run": uuid.uuid4().hex[:12]})
    return str(storage.read_json(run_id_file)["run"])


def _wandb_settings() -> Any:
    """Return settings with deadlines, and without data on this process: its output, code, machine and load."""
    import wandb

    return wandb.Settings(
        init_timeout=_TIMEOUT_S,
        finish_timeout=_TIMEOUT_S,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
