"""What of an experiment can be deleted without anybody missing it.

Only files below `<storage>/<name>/` are looked at, from one listing. What a run's `state.json` names stays, but for the
weights of search trials: once the search is finished, `trials.json` has their results, and only the best one's stay.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import FEATURES_FOLDER, MANIFEST_FILE, SHARDS_FOLDER
from lakd_ray.errors import StorageError
from lakd_ray.runs import record as records
from lakd_ray.runs.layout import RECORD_FILE, STATE_FILE

RECENT_WRITE_S = 3600.0
"""Where a stage is unfinished and something was written within this time, it is taken to be running."""

_TEMPORARY_PATTERN = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_CHECKPOINT_PATTERN = re.compile(
    r"(?P<run>.+)/(?P<name>(?:best|resume)-\d{4,}(?:-\d+)?)/.+"
)  # what a run keeps of an epoch
_LOGITS_PATTERN = re.compile(r"(?P<path>teachers/logits/(?P<teacher>[^/]+)/(?P<key>[^/]+))/[^/]+\.parquet")


@dataclass(frozen=True)
class GarbageItem:
    """Something that can be deleted."""

    paths: tuple[str, ...]
    """Files and folders, relative to the experiment's, in the order in which they are to go."""
    size: int
    reason: str


@dataclass
class GarbageReport:
    """What was found, and what was left alone."""

    folder: str
    items: list[GarbageItem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)


def find_garbage(config: Experiment) -> GarbageReport:
    """Look through an experiment's folder. While it seems to be running, only what finished runs left is offered.

    Raises:
        StorageError: the folder cannot be listed, or a record in it is damaged.
    """
    tree = _ExperimentTree(config.folder)
    findings = GarbageReport(config.folder)
    busy = tree.running_stage()
    if busy:
        findings.notes.append(
            f"{busy}: the experiment seems to be running, so only what finished runs left behind is listed"
        )
    found = [*_stale_checkpoints(tree, idle=not busy), *_losing_trial_weights(tree), *_ray_tune_state(tree)]
    if not busy:
        found += [*_ray_train_state(tree), *_unreferenced_shards(tree), *_stale_logits(tree)]
        found += _abandoned_writes(tree, [place for places, _ in found for place in places])
    for places, reason in found:
        if outside := [place for place in places if not tree.contains(place)]:
            findings.notes.append(f"{outside[0]} is a link to somewhere else: left alone")
        else:
            findings.items.append(GarbageItem(places, sum(map(tree.total_size, places)), reason))
    return findings


def delete_garbage(config: Experiment, report: GarbageReport) -> int:
    """Delete what was found and is rubbish still: the experiment may have been started since. Returns the bytes freed.

    A folder loses its seal first, so that half of it is never taken for whole.

    Raises:
        StorageError: something cannot be deleted; what comes after it is left.
    """
    still = set(find_garbage(config).items)
    items = [item for item in report.items if item in still]
    for item in items:
        for place in item.paths:
            location = storage.join(report.folder, place)
            storage.remove_checksums(location)
            storage.delete(location)
    return sum(item.size for item in items)


def format_report(report: GarbageReport) -> str:
    """The findings for people."""
    items = sorted(report.items, key=lambda item: -item.size)
    lines = [f"{storage.format_bytes(item.size):>10}  {', '.join(item.paths)}: {item.reason}" for item in items]
    total = f"{storage.format_bytes(report.size):>10}  in all, in {report.folder}" if items else "nothing to delete"
    return "\n".join([*lines, total, *(f"note: {note}" for note in report.notes)])


Candidates = Iterator[tuple[tuple[str, ...], str]]


class _ExperimentTree:
    """The files of an experiment by their names below its folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = {info.location[len(folder) + 1 :]: info for info in storage.list_files(folder)}
        places = [name.rpartition("/")[0] for name in self.files if name.rpartition("/")[2] == RECORD_FILE]
        self.records = {place: self.read_json(f"{place}/{RECORD_FILE}") for place in places}

    def read_json(self, name: str) -> Any:
        return storage.read_json(storage.join(self.folder, name))

    def is_finished(self, path: str) -> bool:
        """Whether a folder has a record that says so."""
        return self.records.get(path, {}).get("finished") is not None

    def files_under(self, path: str) -> list[storage.FileInfo]:
        """Files of a folder, or the file."""
        return [info for name, info in self.files.items() if name == path or name.startswith(path + "/")]

    def total_size(self, path: str) -> int:
        return sum(info.size for info in self.files_under(path))

    def last_modified(self, path: str) -> float:
        return max(info.modified for info in self.files_under(path))

    def running_stage(self) -> str | None:
        """The unfinished folder that was written to a short while ago, if there is one."""
        for place, record in sorted(self.records.items()):
            seconds = time.time() - self.last_modified(place)
            if record["finished"] is None and seconds < RECENT_WRITE_S and not self._is_stopped_trial(place):
                return f"{place} is not finished and was written to {seconds / 60:.0f} minutes ago"
        return None

    def _is_stopped_trial(self, path: str) -> bool:
        """Whether it is a trial that the finished search stopped early."""
        return path.startswith("tune/trials/") and self.is_finished("tune")

    def contains(self, path: str) -> bool:
        """Whether it lies in the folder itself and not behind a link."""
        if storage.is_remote(self.folder):
            return True
        folder = os.path.realpath(storage.resolve_filesystem(self.folder)[1])
        return os.path.realpath(os.path.join(folder, path)) == os.path.join(folder, path)


def _stale_checkpoints(tree: _ExperimentTree, *, idle: bool) -> Candidates:
    """Checkpoints and states that their run does not name: a crash came before they were named, or before they went."""
    kept = {(match["run"], match["name"]) for name in tree.files if (match := _CHECKPOINT_PATTERN.fullmatch(name))}
    for run in sorted({run for run, _ in kept}):
        if run not in tree.records or not (idle or tree.is_finished(run)):
            continue
        state = tree.read_json(f"{run}/{STATE_FILE}") if f"{run}/{STATE_FILE}" in tree.files else {}
        named = set(state.get("folders", ()))
        for name in sorted(name for of, name in kept if of == run and name not in named):
            sealed = f"{run}/{name}/{storage.CHECKSUMS_FILE}" in tree.files
            why = (
                "state of a finished run"
                if tree.is_finished(run) and name.startswith("resume")
                else "not its run's any more"
            )
            yield (f"{run}/{name}",), why if sealed else "never finished"


def _losing_trial_weights(tree: _ExperimentTree) -> Candidates:
    """Weights of all trials but the best, once the search is finished."""
    if not tree.is_finished("tune") or "tune/trials.json" not in tree.files:
        return
    best = tree.read_json("tune/trials.json")[0]["trial"]
    names = {name.split("/")[2] for name in tree.files if name.startswith("tune/trials/") and name.count("/") > 2}
    for name in sorted(names - {str(best)}):
        trial = f"tune/trials/{name}"
        if f"{trial}/{STATE_FILE}" not in tree.files:
            continue
        state = tree.read_json(f"{trial}/{STATE_FILE}")
        named = [f"{trial}/{folder}" for folder in state["folders"]]
        if named := [place for place in named if tree.files_under(place)]:
            yield (f"{trial}/{STATE_FILE}", *named), "weights of a trial that did not win; its result is in trials.json"


def _ray_tune_state(tree: _ExperimentTree) -> Candidates:
    if tree.is_finished("tune") and tree.files_under("tune/ray"):
        yield ("tune/ray",), "Ray Tune's own state; the search is finished"


def _ray_train_state(tree: _ExperimentTree) -> Candidates:
    if tree.files_under("ray"):
        yield ("ray",), "Ray Train's own state; nothing reads it"


def _abandoned_writes(tree: _ExperimentTree, deleted_paths: list[str]) -> Candidates:
    """Unfinished files, but for those in folders that go anyway."""
    for name, info in tree.files.items():
        old = time.time() - info.modified > RECENT_WRITE_S
        if (
            old
            and _TEMPORARY_PATTERN.fullmatch(info.name)
            and not any(name.startswith(place + "/") for place in deleted_paths)
        ):
            yield (name,), "a write that was never finished"


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
            yield (name,), "no shard of the manifest's"
        elif folder.startswith(f"prepare/{FEATURES_FOLDER}/"):
            yield (name,), "features of a shard that the manifest does not name"


def _stale_logits(tree: _ExperimentTree) -> Candidates:
    """Logits of another checkpoint than the finished teacher's."""
    found = {match["path"]: match for name in tree.files if (match := _LOGITS_PATTERN.fullmatch(name))}
    for place, match in sorted(found.items()):
        teacher = f"teachers/{match['teacher']}"
        if not tree.is_finished(teacher):
            continue
        state = tree.read_json(f"{teacher}/{STATE_FILE}")
        try:
            current = records.folder_fingerprint(storage.join(tree.folder, teacher, state["best"]))
        except StorageError:  # a teacher without its checkpoint has to be looked after first
            continue
        if match["key"] != current:
            yield (place,), f"logits of another {match['teacher']} than the one there now"
