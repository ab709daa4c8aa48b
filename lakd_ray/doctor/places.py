"""Checks of what an experiment reads and writes: storage, corpora, pretrained encoders, the endpoint's port.

Buckets are asked once and given `ANSWER_S`: training is patient with a server that is away for a while, a look is not.
"""

import importlib.util
import os
import tempfile
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import sources
from lakd_ray.data.manifest import MANIFEST_FILE
from lakd_ray.doctor.encoders import encoders
from lakd_ray.doctor.results import Check, Result
from lakd_ray.errors import ResourceError
from lakd_ray.housekeeping import disk
from lakd_ray.serve.port import free_port

ANSWER_S = 5
"""Seconds that a bucket's server or the hub has for one answer."""

STORAGE = ("storage", "room", "corpora")
"""Checks of places that hold data."""

_MADE = "espeak"  # this importer makes its corpus where there is none


def checks(config: Experiment, stages: Collection[str], *, quick: bool) -> list[Check]:
    """What the stages read and write.

    Args:
        quick: leave out what takes seconds: the estimate of room, and questions to the hub.
    """
    looks: dict[str, Callable[[], Result]] = {"storage": lambda: writable(config)}
    if not quick:
        looks["room"] = lambda: room(config)
    if "prepare" in stages:
        looks["corpora"] = lambda: corpora(config)
    if {"teachers", "distill", "tune"} & set(stages):
        looks["encoders"] = lambda: encoders(config, stages, answer_s=None if quick else ANSWER_S)
    if "serve" in stages:
        looks["port"] = lambda: port(config)
    waits_for = {"storage": config.storage, "room": config.storage, "encoders": "their place or the hub"}
    waits_for["corpora"] = ", ".join(sources.root_of(corpus, config) for corpus in config.corpora)
    seconds = {"room": 120.0}  # lists everything and loads transformers
    return [
        Check(name, _hurried(look), waits_for.get(name, "this machine"), seconds.get(name, 4.0 * ANSWER_S))
        for name, look in looks.items()
    ]


def _hurried(look: Callable[[], Result]) -> Callable[[], Result]:
    def asked() -> Result:
        with storage.hurried(ANSWER_S):
            return look()

    return asked


def writable(config: Experiment) -> Result:
    """A small file written to the storage, read back and deleted. Makes no folder.

    Raises:
        StorageError: one of that failed; the message says what to check.
    """
    place = config.storage if storage.is_remote(config.storage) else str(storage.nearest(config.storage))
    probe, content = storage.join(place, f".lakd-doctor-{uuid.uuid4().hex[:8]}"), uuid.uuid4().bytes
    storage.write_bytes(probe, content)
    try:
        found = storage.read_bytes(probe)
    finally:
        storage.delete(probe)
    if found != content:
        todo = "choose a storage that shows what was written to it"
        return Result("storage", "fail", f"{place} gives back other bytes than were written", "the same", todo)
    return Result("storage", "ok", f"{config.storage} can be written and read")


def room(config: Experiment) -> Result:
    """What is left to write, as `lakd disk` estimates it, against what is free.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers refuses an architecture.
    """
    usage = disk.measure(config)
    missing, workers = storage.size_text(usage.missing), config.train.side_by_side * config.train.workers
    temporary, free = usage.temporary * workers, storage.free_bytes(tempfile.gettempdir())
    told = f"at most {missing} still to come"
    if usage.free is not None:
        told += f", {storage.size_text(usage.free)} free"
        if usage.free < usage.missing:
            todo = "make room there (`lakd gc` deletes what is not needed), or choose another storage"
            return Result("room", "fail", told, f"{missing} free on the disk of {config.storage}", todo)
    if free < temporary:
        expected = f"{storage.size_text(temporary)} in {tempfile.gettempdir()}, for {workers} workers while they save"
        return Result("room", "warn", f"{told}, {storage.size_text(free)} free there", expected, "set TMPDIR elsewhere")
    return Result("room", "ok", told)


def corpora(config: Experiment) -> Result:
    """Roots of the corpora. Once they are prepared, they are only compared with."""
    roots = {corpus.name: sources.root_of(corpus, config) for corpus in config.corpora}
    made = [corpus for corpus in config.corpora if corpus.importer == _MADE and not storage.exists(roots[corpus.name])]
    asked = tuple(corpus for corpus in config.corpora if corpus not in made)
    missing = sources.unreachable(config.model_copy(update={"corpora": asked}))
    missing += [f"{name} at {root}: it may not be read" for name, root in roots.items() if not _readable(root)]
    if made and importlib.util.find_spec("espeakng_loader") is None:
        missing += [f"{corpus.name} cannot be made: pip install 'lakd-ray[demo]'" for corpus in made]
    if not missing:
        return Result("corpora", "ok", ", ".join(roots.values()) + (" (made by `prepare`)" if made else ""))
    prepared = storage.exists(storage.join(config.stage_folder("prepare"), MANIFEST_FILE))
    todo = "correct `root` or its permissions, or put the corpus there"
    expected = "all corpora" + (", to compare with what is prepared" if prepared else "")
    return Result("corpora", "warn" if prepared else "fail", "; ".join(missing), expected, todo)


def _readable(root: str) -> bool:
    """Whether a local place that is there may be read."""
    place = Path(os.path.expanduser(root))
    if storage.is_remote(root) or not place.exists():
        return True
    return os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0))


def port(config: Experiment) -> Result:
    """Whether the endpoint can listen."""
    try:
        free_port(config.serve)
    except ResourceError as error:
        return Result("port", "fail", str(error), f"serve.port {config.serve.port} to be free")
    chosen = config.serve.port or "any free one"
    return Result("port", "ok", f"{config.serve.host} port {chosen}")
