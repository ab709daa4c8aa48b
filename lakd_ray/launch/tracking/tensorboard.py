"""Log training runs to TensorBoard: one event file for each run, in the experiment's storage."""

import time
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.launch.tracking.base import EpochMetrics, RunStatus, StagingDir, flatten_metrics
from lakd_ray.runs.graph import Run

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes event files with tensorboardX, without its writer thread, so that a full disk raises in the caller."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self._open_runs: dict[str, tuple[StagingDir, Any]] = {}

    def start_run(self, config: Experiment, run: Run) -> int:
        """Start an empty file for a run. All epochs are written again from the run's metrics, each once."""
        from tensorboardX.event_file_writer import EventsWriter  # only training needs it
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = StagingDir(storage.join(config.folder, TENSORBOARD_FOLDER, run.id))
        writer = EventsWriter(str(folder.path / "events"))
        # a running TensorBoard discards what it has read of the previous file
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=1, session_log=start))
        self._open_runs[run.id] = folder, writer
        return 0

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Write the metrics of an epoch and upload the file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        folder, writer = self._open_runs[run]
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in flatten_metrics(epoch_metrics).items()]
        writer.write_event(Event(wall_time=time.time(), step=epoch_metrics["epoch"], summary=Summary(value=values)))
        writer.flush()
        folder.upload()

    def end_run(self, run: str, status: RunStatus) -> None:
        """Close the event file and upload it for the last time."""
        folder, writer = self._open_runs.pop(run)
        try:
            writer.close()
        finally:
            folder.close()
