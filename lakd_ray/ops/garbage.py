"""Find and delete files of an experiment that are no longer needed.

Only files below `<storage>/<name>/` are considered, from one listing. Folders that the `state.json` of a run refers to
are in use, except those of search trials: once the search is finished, `trials.json` has the results, and only the
weights of the best trial are still needed. Whether the experiment is running is known from its lease, never from the
times of files, because the clock of the storage may differ from that of this machine.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import FEATURES_FOLDER, MANIFEST_FILE, SHARDS_FOLDER
from lakd_ray.errors import LeaseError, StorageError
from lakd_ray.runs import record as records
from lakd_ray.runs.layout import RECORD_FILE, STATE_FILE

_TEMPORARY_PATTERN = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_CHECKPOINT_PATTERN = re.compile(r"(?P<run>.+)/(?P<name>(?:best|resume)-\d{4,}(?:-\d+)?)/.+")
_LOGITS_PATTERN = re.compile(r"(?P<path>teachers/logits/(?P<teacher>[^/]+)/(?P<key>[^/]+))/[^/]+\.parquet")


@dataclass(frozen=True)
class GarbageItem:
    """Files and folders that can be deleted together."""

    paths: tuple[str, ...]
    """Relative to the experiment's folder, in the order of deletion."""
    size: int
    reason: str


@dataclass
class GarbageReport:
    """Garbage of an experiment, and notes on items that were skipped."""

    folder: str
    items: list[GarbageItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all items together."""
        return sum(item.size for item in self.items)


def find_garbage(config: Experiment) -> GarbageReport:
    """Find the garbage in an experiment's folder.

    If a process works on the experiment, only garbage of finished runs is included.

    Raises:
        StorageError: the folder cannot be listed, or a record in it is damaged.
    """
    tree = _ExperimentTree(config.folder)
    findings = GarbageReport(config.folder)
    if busy := _describe_activity(tree):
        findings.notes.append(f"{busy}, so only garbage of finished runs is listed")
    candidates = [*_stale_checkpoints(tree, idle=not busy), *_losing_trial_weights(tree), *_ray_tune_state(tree)]
    if not busy:
        candidates += [*_ray_train_state(tree), *_unreferenced_shards(tree), *_stale_logits(tree)]
        candidates += _abandoned_writes(tree, [path for paths, _ in candidates for path in paths])
    for paths, reason in candidates:
        if links := [path for path in paths if not tree.contains(path)]:
            findings.notes.append(f"{links[0]} is a symlink out of the experiment's folder; skipped")
        else:
            findings.items.append(GarbageItem(paths, sum(map(tree.total_size, paths)), reason))
    return findings


def delete_garbage(config: Experiment, report: GarbageReport) -> int:
    """Delete the items of a report that are still garbage; the experiment may have been restarted since the report.

    The checksum file of a folder is deleted first, so that an interrupted deletion leaves no folder that looks intact.

    Returns:
        Number of bytes freed.

    Raises:
        StorageError: an item cannot be deleted; the items after it are not deleted.
    """
    with _hold_if_free(config.folder):
        current = set(find_garbage(config).items)
        items = [item for item in report.items if item in current]
        for item in items:
            for path in item.paths:
                location = storage.join(report.folder, path)
                storage.remove_checksums(location)
                storage.delete(location)
    return sum(item.size for item in items)


@contextmanager
def _hold_if_free(folder: str) -> Iterator[None]:
    """Keep the experiment from being started, unless a process works on it already."""
    with ExitStack() as stack:
        with suppress(LeaseError):  # its own runs are left out by their leases
            stack.enter_context(storage.hold(folder))
        yield


def _describe_activity(tree: "_ExperimentTree") -> str | None:
    """Return who may be writing to the experiment, or None if there is no such process."""
    if storage.has_lease_records(tree.folder):
        holder = storage.find_holder(tree.folder)
        if holder is None or holder.process == storage.ProcessId.current():
            return None
        return f"{tree.folder} is in use by {holder.describe()}"
    for path, record in sorted(tree.records.items()):
        if record["finished"] is None and not tree.is_stopped_trial(path):
            return f"{path} is not finished, and no command has recorded whether it is still running"
    return None


def format_report(report: GarbageReport) -> str:
    """Format a report as a human-readable list, the largest items first."""
    items = sorted(report.items, key=lambda item: -item.size)
    lines = [f"{storage.format_bytes(item.size):>10}  {', '.join(item.paths)}: {item.reason}" for item in items]
    total = f"{storage.format_bytes(report.size):>10}  total in {report.folder}" if items else "nothing to delete"
    return "\n".join([*lines, total, *(f"note: {note}" for note in report.notes)])


Candidates = Iterator[tuple[tuple[str, ...], str]]


class _ExperimentTree:
    """Files and records of an experiment by their paths relative to its folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = {info.location[len(folder) + 1 :]: info for info in storage.list_files(folder)}
        folders = [name.rpartition("/")[0] for name in self.files if name.rpartition("/")[2] == RECORD_FILE]
        self.records = {path: self.read_json(f"{path}/{RECORD_FILE}") for path in folders}

    def read_json(self, name: str) -> Any:
        return storage.read_json(storage.join(self.folder, name))

    def is_finished(self, path: str) -> bool:
        """Return whether the record of a folder marks it as finished."""
        return self.records.get(path, {}).get("finished") is not None

    def files_under(self, path: str) -> list[storage.FileInfo]:
        """Return the files of a folder, or the file at the path."""
        return [info for name, info in self.files.items() if name == path or name.startswith(path + "/")]

    def total_size(self, path: str) -> int:
        return sum(info.size for info in self.files_under(path))

    def is_stopped_trial(self, path: str) -> bool:
        """Return whether it is a trial that the finished search stopped early."""
        return path.startswith("tune/trials/") and self.is_finished("tune")

    def contains(self, path: str) -> bool:
        """Return whether a path is in the folder itself and not behind a link."""
        if storage.is_remote(self.folder):
            return True
        folder = os.path.realpath(storage.resolve_filesystem(self.folder)[1])
        return os.path.realpath(os.path.join(folder, path)) == os.path.join(folder, path)


def _stale_checkpoints(tree: _ExperimentTree, *, idle: bool) -> Candidates:
    """Yield checkpoints and resume states that `state.json` does not refer to, left behind by crashes."""
    folders = {(match["run"], match["name"]) for name in tree.files if (match := _CHECKPOINT_PATTERN.fullmatch(name))}
    for run in sorted({run for run, _ in folders}):
        if run not in tree.records or not (idle or tree.is_finished(run)):
            continue
        state = tree.read_json(f"{run}/{STATE_FILE}") if f"{run}/{STATE_FILE}" in tree.files else {}
        in_use = set(state.get("folders", ()))
        for name in sorted(name for parent, name in folders if parent == run and name not in in_use):
            is_complete = f"{run}/{name}/{storage.CHECKSUMS_FILE}" in tree.files
            is_finished_state = tree.is_finished(run) and name.startswith("resume")
            reason = "resume state of a finished run" if is_finished_state else "no longer used by its run"
            yield (f"{run}/{name}",), reason if is_complete else "incomplete write"


def _losing_trial_weights(tree: _ExperimentTree) -> Candidates:
    """Yield the weights of all trials except the best one, once the search is finished."""
    if not tree.is_finished("tune") or "tune/trials.json" not in tree.files:
        return
    best = tree.read_json("tune/trials.json")[0]["trial"]
    names = {name.split("/")[2] for name in tree.files if name.startswith("tune/trials/") and name.count("/") > 2}
    for name in sorted(names - {str(best)}):
        trial = f"tune/trials/{name}"
        if f"{trial}/{STATE_FILE}" not in tree.files:
            continue
        state = tree.read_json(f"{trial}/{STATE_FILE}")
        folders = [path for name in state["folders"] if tree.files_under(path := f"{trial}/{name}")]
        if folders:
            yield (
                (f"{trial}/{STATE_FILE}", *folders),
                "weights of a trial that is not the best; trials.json has its result",
            )


def _ray_tune_state(tree: _ExperimentTree) -> Candidates:
    if tree.is_finished("tune") and tree.files_under("tune/ray"):
        yield ("tune/ray",), "state of Ray Tune; the search is finished"


def _ray_train_state(tree: _ExperimentTree) -> Candidates:
    if tree.files_under("ray"):
        yield ("ray",), "state of Ray Train; no stage reads it"


def _abandoned_writes(tree: _ExperimentTree, deleted_paths: list[str]) -> Candidates:
    """Yield temporary files of interrupted writes, except in folders that are deleted as well."""
    for name, info in tree.files.items():
        is_temporary = _TEMPORARY_PATTERN.fullmatch(info.name) and not name.startswith("report/")  # it needs no lease
        if is_temporary and not any(name.startswith(path + "/") for path in deleted_paths):
            yield (name,), "incomplete write"


def _unreferenced_shards(tree: _ExperimentTree) -> Candidates:
    if not tree.is_finished("prepare") or f"prepare/{MANIFEST_FILE}" not in tree.files:
        return
    table = storage.read_table(storage.join(tree.folder, "prepare", MANIFEST_FILE), columns=["shard"])
    used = set(table["shard"].unique().to_pylist())
    for name in sorted(tree.files):
        folder, _, shard = name.rpartition("/")
        if shard in used or _TEMPORARY_PATTERN.fullmatch(shard):
            continue
        if folder == f"prepare/{SHARDS_FOLDER}":
            yield (name,), "shard that the manifest does not list"
        elif folder.startswith(f"prepare/{FEATURES_FOLDER}/"):
            yield (name,), "features of a shard that the manifest does not list"


def _stale_logits(tree: _ExperimentTree) -> Candidates:
    """Yield cached logits of checkpoints that are no longer the ones of their finished teachers."""
    caches = {match["path"]: match for name in tree.files if (match := _LOGITS_PATTERN.fullmatch(name))}
    for path, match in sorted(caches.items()):
        teacher = f"teachers/{match['teacher']}"
        if not tree.is_finished(teacher):
            continue
        state = tree.read_json(f"{teacher}/{STATE_FILE}")
        try:
            best = storage.confine(storage.join(tree.folder, teacher), state["best"], allow_links=True)
            current = records.folder_fingerprint(best)
        except StorageError:  # the checkpoint of the teacher is damaged or missing, which is a different problem
            continue
        if match["key"] != current:
            yield (path,), f"logits of an earlier checkpoint of {match['teacher']}"
