"""Checks of the storage, corpora and pretrained models of an experiment, and of the endpoint's port and keys.

Requests to buckets have `RESPONSE_TIMEOUT_S` and no retries; training retries for much longer.
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
from lakd_ray.errors import ConfigError, ResourceError
from lakd_ray.ops import disk_usage
from lakd_ray.ops.doctor.check import Check, CheckResult
from lakd_ray.ops.doctor.pretrained_checks import check_pretrained, check_training_data
from lakd_ray.serve.auth import resolve_keys
from lakd_ray.serve.port import resolve_port

RESPONSE_TIMEOUT_S = 5
"""Seconds for a response of a bucket's server or of the hub."""

STORAGE_CHECKS = ("storage", "disk space", "corpora")
"""Names of the checks whose failure is a StorageError."""

_SYNTHESIZER = "espeak"  # this importer synthesizes a corpus that does not exist


def experiment_checks(config: Experiment, stages: Collection[str], *, quick: bool) -> list[Check]:
    """Return the checks of all data that the stages read and write.

    Args:
        config: the experiment.
        stages: stages to run.
        quick: leave out what takes seconds: the estimate of disk space, and requests to the hub.
    """
    checks: dict[str, Callable[[], CheckResult]] = {"storage": lambda: check_writable(config)}
    if not quick:
        checks["disk space"] = lambda: check_disk_space(config)
    if "prepare" in stages:
        checks["corpora"] = lambda: check_corpora(config)
    if {"teachers", "distill", "tune"} & set(stages):
        timeout_s = None if quick else RESPONSE_TIMEOUT_S
        checks["pretrained models"] = lambda: check_pretrained(config, stages, timeout_s=timeout_s)
        if not quick:  # training checks it again before it starts
            checks["training data"] = lambda: check_training_data(config)
    if "serve" in stages:
        checks["port"] = lambda: check_port(config)
        checks["API keys"] = lambda: check_api_keys(config)
    targets = {"storage": config.storage, "disk space": config.storage}
    targets |= {"pretrained models": "their location or the hub"}
    targets["corpora"] = ", ".join(corpus_snapshot.resolve_corpus_root(corpus, config) for corpus in config.corpora)
    timeouts = {"disk space": 120.0, "training data": 120.0}  # lists all files and loads transformers
    return [
        Check(
            name,
            _with_short_timeouts(check),
            targets.get(name, "this machine"),
            timeouts.get(name, 4.0 * RESPONSE_TIMEOUT_S),
        )
        for name, check in checks.items()
    ]


def _with_short_timeouts(check: Callable[[], CheckResult]) -> Callable[[], CheckResult]:
    def run() -> CheckResult:
        with storage.short_timeouts(RESPONSE_TIMEOUT_S):
            return check()

    return run


def check_writable(config: Experiment) -> CheckResult:
    """Write a small file to the storage, read it back and delete it; creates no folder.

    Raises:
        StorageError: one of these steps failed.
    """
    folder = (
        config.storage if storage.is_remote(config.storage) else str(storage.nearest_existing_parent(config.storage))
    )
    probe, content = storage.join(folder, f".lakd-doctor-{uuid.uuid4().hex[:8]}"), uuid.uuid4().bytes
    storage.write_bytes(probe, content)
    try:
        read = storage.read_bytes(probe)
    finally:
        storage.delete(probe)
    if read != content:
        hint = "choose a storage with read-after-write consistency"
        return CheckResult("storage", "fail", f"{folder} returns different bytes than written", "equal bytes", hint)
    return CheckResult("storage", "ok", f"{config.storage} is readable and writable")


def check_disk_space(config: Experiment) -> CheckResult:
    """Compare the free space with the estimate of `lakd disk-usage` for the remaining work.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers rejects an architecture.
    """
    usage = disk_usage.estimate_usage(config)
    required, workers = storage.format_bytes(usage.required), config.train.parallel_runs * config.train.workers
    temporary, free = usage.temporary * workers, storage.free_bytes(tempfile.gettempdir())
    found = f"at most {required} required"
    if usage.free is not None:
        found += f", {storage.format_bytes(usage.free)} free"
        if usage.free < usage.required:
            expected = f"{required} free on the disk of {config.storage}"
            hint = "free some space (`lakd gc` deletes files that are no longer needed), or change `storage`"
            return CheckResult("disk space", "fail", found, expected, hint)
    if free < temporary:
        expected = (
            f"{storage.format_bytes(temporary)} in {tempfile.gettempdir()}, for {workers} workers while they save"
        )
        found += f", {storage.format_bytes(free)} free in {tempfile.gettempdir()}"
        return CheckResult("disk space", "warn", found, expected, "set TMPDIR to a folder on a larger disk")
    return CheckResult("disk space", "ok", found)


def check_corpora(config: Experiment) -> CheckResult:
    """Check the roots of the corpora; after `prepare` a missing corpus is only a warning."""
    roots = {corpus.name: corpus_snapshot.resolve_corpus_root(corpus, config) for corpus in config.corpora}
    synthesized = [
        corpus
        for corpus in config.corpora
        if corpus.importer == _SYNTHESIZER and not storage.exists(roots[corpus.name])
    ]
    existing = tuple(corpus for corpus in config.corpora if corpus not in synthesized)
    missing = corpus_snapshot.unreachable_corpora(config.model_copy(update={"corpora": existing}))
    missing += [f"{name} at {root}: no permission to read it" for name, root in roots.items() if not _is_readable(root)]
    if synthesized and importlib.util.find_spec("espeakng_loader") is None:
        missing += [f"{corpus.name} cannot be synthesized: pip install 'lakd-ray[demo]'" for corpus in synthesized]
    if not missing:
        note = " (synthesized by `prepare`)" if synthesized else ""
        return CheckResult("corpora", "ok", ", ".join(roots.values()) + note)
    prepared = storage.exists(storage.join(config.stage_folder("prepare"), MANIFEST_FILE))
    hint = "correct `root` or its permissions, or copy the corpus to it"
    expected = "all corpora" + (", to compare with the prepared data" if prepared else "")
    return CheckResult("corpora", "warn" if prepared else "fail", "; ".join(missing), expected, hint)


def _is_readable(root: str) -> bool:
    """Return whether an existing local path is readable; True for all others."""
    path = Path(os.path.expanduser(root))
    if storage.is_remote(root) or not path.exists():
        return True
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def check_port(config: Experiment) -> CheckResult:
    """Check that the endpoint can listen on its port."""
    try:
        resolve_port(config.serve)
    except ResourceError as error:
        return CheckResult("port", "fail", str(error), f"a free port {config.serve.port} (serve.port)")
    port = config.serve.port or "any free one"
    return CheckResult("port", "ok", f"{config.serve.host} port {port}")


def check_api_keys(config: Experiment) -> CheckResult:
    """Check that the endpoint has keys, or is reachable from this machine only."""
    try:
        keys = resolve_keys(config.serve)
    except ConfigError as error:
        return CheckResult("API keys", "fail", str(error), "keys that the endpoint can read (serve.api_keys_file)")
    count = len(keys.environment) + len(keys.file)
    return CheckResult("API keys", "ok", f"{count} keys" if keys.required else "none, for clients on this machine only")
