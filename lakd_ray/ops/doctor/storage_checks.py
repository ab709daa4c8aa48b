"""Checks of what an experiment reads and writes: storage, corpora, pretrained encoders, the endpoint's port.

Buckets are asked once and given `RESPONSE_TIMEOUT_S`: training is patient with a server that is away for a while, a look is not.
"""

import importlib.util
import os
import tempfile
import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import corpus_snapshot
from lakd_ray.data.manifest import MANIFEST_FILE
from lakd_ray.errors import ResourceError
from lakd_ray.ops import disk_usage
from lakd_ray.ops.doctor.check import Check, CheckResult
from lakd_ray.ops.doctor.pretrained_checks import check_pretrained
from lakd_ray.serve.port import resolve_port

RESPONSE_TIMEOUT_S = 5
"""Seconds that a bucket's server or the hub has for one answer."""

STORAGE_CHECKS = ("storage", "room", "corpora")
"""Checks of places that hold data."""

_SYNTHESIZER = "espeak"  # this importer makes its corpus where there is none


def experiment_checks(config: Experiment, stages: Collection[str], *, quick: bool) -> list[Check]:
    """What the stages read and write.

    Args:
        quick: leave out what takes seconds: the estimate of room, and questions to the hub.
    """
    looks: dict[str, Callable[[], CheckResult]] = {"storage": lambda: check_writable(config)}
    if not quick:
        looks["room"] = lambda: check_disk_space(config)
    if "prepare" in stages:
        looks["corpora"] = lambda: check_corpora(config)
    if {"teachers", "distill", "tune"} & set(stages):
        looks["encoders"] = lambda: check_pretrained(config, stages, timeout_s=None if quick else RESPONSE_TIMEOUT_S)
    if "serve" in stages:
        looks["port"] = lambda: check_port(config)
    waits_for = {"storage": config.storage, "room": config.storage, "encoders": "their place or the hub"}
    waits_for["corpora"] = ", ".join(corpus_snapshot.resolve_corpus_root(corpus, config) for corpus in config.corpora)
    seconds = {"room": 120.0}  # lists everything and loads transformers
    return [
        Check(
            name,
            _with_short_timeouts(look),
            waits_for.get(name, "this machine"),
            seconds.get(name, 4.0 * RESPONSE_TIMEOUT_S),
        )
        for name, look in looks.items()
    ]


def _with_short_timeouts(look: Callable[[], CheckResult]) -> Callable[[], CheckResult]:
    def asked() -> CheckResult:
        with storage.short_timeouts(RESPONSE_TIMEOUT_S):
            return look()

    return asked


def check_writable(config: Experiment) -> CheckResult:
    """A small file written to the storage, read back and deleted. Makes no folder.

    Raises:
        StorageError: one of that failed; the message says what to check.
    """
    place = (
        config.storage if storage.is_remote(config.storage) else str(storage.nearest_existing_parent(config.storage))
    )
    probe, content = storage.join(place, f".lakd-doctor-{uuid.uuid4().hex[:8]}"), uuid.uuid4().bytes
    storage.write_bytes(probe, content)
    try:
        found = storage.read_bytes(probe)
    finally:
        storage.delete(probe)
    if found != content:
        todo = "choose a storage that shows what was written to it"
        return CheckResult("storage", "fail", f"{place} gives back other bytes than were written", "the same", todo)
    return CheckResult("storage", "ok", f"{config.storage} can be written and read")


def check_disk_space(config: Experiment) -> CheckResult:
    """What is left to write, as `lakd disk-usage` estimates it, against what is free.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers refuses an architecture.
    """
    usage = disk_usage.estimate_usage(config)
    missing, workers = storage.format_bytes(usage.required), config.train.parallel_runs * config.train.workers
    temporary, free = usage.temporary * workers, storage.free_bytes(tempfile.gettempdir())
    told = f"at most {missing} still to come"
    if usage.free is not None:
        told += f", {storage.format_bytes(usage.free)} free"
        if usage.free < usage.required:
            todo = "make room there (`lakd gc` deletes what is not needed), or choose another storage"
            return CheckResult("room", "fail", told, f"{missing} free on the disk of {config.storage}", todo)
    if free < temporary:
        expected = (
            f"{storage.format_bytes(temporary)} in {tempfile.gettempdir()}, for {workers} workers while they save"
        )
        return CheckResult(
            "room", "warn", f"{told}, {storage.format_bytes(free)} free there", expected, "set TMPDIR elsewhere"
        )
    return CheckResult("room", "ok", told)


def check_corpora(config: Experiment) -> CheckResult:
    """Roots of the corpora. Once they are prepared, they are only compared with."""
    roots = {corpus.name: corpus_snapshot.resolve_corpus_root(corpus, config) for corpus in config.corpora}
    made = [
        corpus
        for corpus in config.corpora
        if corpus.importer == _SYNTHESIZER and not storage.exists(roots[corpus.name])
    ]
    asked = tuple(corpus for corpus in config.corpora if corpus not in made)
    missing = corpus_snapshot.unreachable_corpora(config.model_copy(update={"corpora": asked}))
    missing += [f"{name} at {root}: it may not be read" for name, root in roots.items() if not _is_readable(root)]
    if made and importlib.util.find_spec("espeakng_loader") is None:
        missing += [f"{corpus.name} cannot be made: pip install 'lakd-ray[demo]'" for corpus in made]
    if not missing:
        return CheckResult("corpora", "ok", ", ".join(roots.values()) + (" (made by `prepare`)" if made else ""))
    prepared = storage.exists(storage.join(config.stage_folder("prepare"), MANIFEST_FILE))
    todo = "correct `root` or its permissions, or put the corpus there"
    expected = "all corpora" + (", to compare with what is prepared" if prepared else "")
    return CheckResult("corpora", "warn" if prepared else "fail", "; ".join(missing), expected, todo)


def _is_readable(root: str) -> bool:
    """Whether a local place that is there may be read."""
    place = Path(os.path.expanduser(root))
    if storage.is_remote(root) or not place.exists():
        return True
    return os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0))


def check_port(config: Experiment) -> CheckResult:
    """Whether the endpoint can listen."""
    try:
        resolve_port(config.serve)
    except ResourceError as error:
        return CheckResult("port", "fail", str(error), f"serve.port {config.serve.port} to be free")
    chosen = config.serve.port or "any free one"
    return CheckResult("port", "ok", f"{config.serve.host} port {chosen}")
