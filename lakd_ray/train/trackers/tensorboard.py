"""TensorBoard: one event file for each run, in the experiment's storage."""

import time
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.runs import Run
from lakd_ray.train.trackers.base import Line, LocalFolder, Outcome, scalars

FOLDER = "tensorboard"


class TensorBoard:
    """Writes events by tensorboardX's own writer, without its thread: a full disk is told to who writes."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self._open: dict[str, tuple[LocalFolder, Any]] = {}

    def open(self, config: Experiment, run: Run) -> int:
        """Start a run's file anew: it holds nothing that the run's metrics do not, so none of its epochs is twice."""
        from tensorboardX.event_file_writer import EventsWriter  # loaded by who trains
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = LocalFolder(storage.join(config.folder, FOLDER, run.id))
        writer = EventsWriter(str(folder.path / "events"))
        # a TensorBoard that is watching drops what it has read of the file before
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=1, session_log=start))
        self._open[run.id] = folder, writer
        return 0

    def epoch(self, run: str, line: Line) -> None:
        """Write an epoch, and see that it lies where people look."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        folder, writer = self._open[run]
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
        writer.write_event(Event(wall_time=time.time(), step=line["epoch"], summary=Summary(value=values)))
        writer.flush()
        folder.push()

    def close(self, run: str, outcome: Outcome) -> None:
        """Close the file."""
        folder, writer = self._open.pop(run)
        try:
            writer.close()
        finally:
            folder.close()
