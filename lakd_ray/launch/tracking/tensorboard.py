"""TensorBoard: one event file for each run, in the experiment's storage."""

import time
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.launch.tracking.base import EpochMetrics, RunStatus, StagingDir, flatten_metrics
from lakd_ray.runs.graph import Run

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes events by tensorboardX's own writer, without its thread: a full disk is told to who writes."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self._open_runs: dict[str, tuple[StagingDir, Any]] = {}

    def start_run(self, config: Experiment, run: Run) -> int:
        """Start a run's file anew: it holds nothing that the run's metrics do not, so none of its epochs is twice."""
        from tensorboardX.event_file_writer import EventsWriter  # loaded by who trains
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = StagingDir(storage.join(config.folder, TENSORBOARD_FOLDER, run.id))
        writer = EventsWriter(str(folder.path / "events"))
        # a TensorBoard that is watching drops what it has read of the file before
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=1, session_log=start))
        self._open_runs[run.id] = folder, writer
        return 0

    def log_epoch(self, run: str, epoch_metrics: EpochMetrics) -> None:
        """Write an epoch, and see that it lies where people look."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        folder, writer = self._open_runs[run]
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in flatten_metrics(epoch_metrics).items()]
        writer.write_event(Event(wall_time=time.time(), step=epoch_metrics["epoch"], summary=Summary(value=values)))
        writer.flush()
        folder.upload()

    def end_run(self, run: str, status: RunStatus) -> None:
        """Close the file."""
        folder, writer = self._open_runs.pop(run)
        try:
            writer.close()
        finally:
            folder.close()
