"""Weights & Biases: a run there for each run here, sent at once or written to the storage to be sent later.

Its id stands in `wandb.json` in the run's folder: a run that goes on is continued, one that is made anew is another.
"""

import uuid
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.config import Wandb as Section
from lakd_ray.errors import ConfigError
from lakd_ray.runs import Run
from lakd_ray.train.trackers.base import Line, LocalFolder, Outcome, scalars, settings, tags

FOLDER, KNOWN = "wandb", "wandb.json"
_DEADLINE_S = 20.0


class Wandb:
    """Tells Weights & Biases."""

    name = "Weights & Biases"

    def __init__(self, section: Section) -> None:
        self._section = section
        self._open: dict[str, tuple[LocalFolder, Any]] = {}
        self._ended: list[LocalFolder] = []

    def open(self, config: Experiment, run: Run) -> int:
        """Go on with a run there, or make one. What is written offline is written anew, whole."""
        import wandb  # takes seconds to load

        online = self._section.mode == "online"
        if online and not wandb.login(prompt=False):
            raise ConfigError("found no key: set WANDB_API_KEY where the driver runs, or tracking.wandb.mode: offline")
        folder = LocalFolder(storage.join(config.folder, FOLDER, run.id))
        theirs = wandb.init(
            entity=self._section.entity,
            project=self._section.project,
            group=config.name,
            id=_id(storage.join(run.folder(config), KNOWN)),
            name=run.id,
            config=settings(config, run),
            tags=[f"{key}:{value}"[:64] for key, value in tags(config, run).items()],
            dir=str(folder.path),
            mode=self._section.mode,
            resume="allow" if online else None,
            reinit="create_new",  # several runs train side by side
            settings=_settings(),
        )
        self._open[run.id] = folder, theirs
        return max(0, int(theirs.starting_step) - 1)

    def epoch(self, run: str, line: Line) -> None:
        """Hand an epoch over."""
        _, theirs = self._open[run]
        theirs.log(scalars(line), step=line["epoch"])

    def close(self, run: str, outcome: Outcome) -> None:
        """Say how it ended, and send what is left to be sent."""
        folder, theirs = self._open.pop(run)
        self._ended.append(folder)
        try:
            theirs.finish(exit_code=int(outcome != "finished"))
        finally:
            if not self._open:
                self._settle()

    def _settle(self) -> None:
        """Close the folders of runs that have ended; `finish` comes back while their files are still being written."""
        import wandb

        try:
            wandb.teardown()  # waits for all that is being written, and so only when no run is open
        finally:
            while self._ended:
                self._ended.pop().close()


def _id(known: str) -> str:
    if not storage.exists(known):
        storage.write_json(known, {"run": uuid.uuid4().hex[:12]})
    return str(storage.read_json(known)["run"])


def _settings() -> Any:
    """With deadlines, and without what is not about the run: this process's output, code, machine and its load."""
    import wandb

    return wandb.Settings(
        init_timeout=_DEADLINE_S,
        finish_timeout=_DEADLINE_S,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
