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

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import FEATURES, MANIFEST_FILE, SHARDS
from lakd_ray.errors import StorageError
from lakd_ray.train.state import STATE

BUSY_S = 3600.0
"""Where a stage is unfinished and something was written within this time, it is taken to be running."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_KEPT = re.compile(r"(?P<run>.+)/(?P<name>(?:best|resume)-\d{4,}(?:-\d+)?)/.+")  # what a run keeps of an epoch
_LOGITS = re.compile(r"(?P<place>teachers/logits/(?P<teacher>[^/]+)/(?P<key>[^/]+))/[^/]+\.parquet")


@dataclass(frozen=True)
class Rubbish:
    """Something that can be deleted."""

    places: tuple[str, ...]
    """Files and folders, relative to the experiment's, in the order in which they are to go."""
    size: int
    reason: str


@dataclass
class Findings:
    """What was found, and what was left alone."""

    folder: str
    items: list[Rubbish] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)


def find(config: Experiment) -> Findings:
    """Look through an experiment's folder. While it seems to be running, only what finished runs left is offered.

    Raises:
        StorageError: the folder cannot be listed, or a record in it is damaged.
    """
    tree = _Tree(config.folder)
    findings = Findings(config.folder)
    busy = tree.busy()
    if busy:
        findings.notes.append(
            f"{busy}: the experiment seems to be running, so only what finished runs left behind is listed"
        )
    found = [*_epochs(tree, idle=not busy), *_trials(tree), *_search_state(tree)]
    if not busy:
        found += [*_train_state(tree), *_shards(tree), *_logits(tree)]
        found += _temporary(tree, [place for places, _ in found for place in places])
    for places, reason in found:
        if outside := [place for place in places if not tree.holds(place)]:
            findings.notes.append(f"{outside[0]} is a link to somewhere else: left alone")
        else:
            findings.items.append(Rubbish(places, sum(map(tree.size, places)), reason))
    return findings


def delete(config: Experiment, findings: Findings) -> int:
    """Delete what was found and is rubbish still: the experiment may have been started since. Returns the bytes freed.

    A folder loses its seal first, so that half of it is never taken for whole.

    Raises:
        StorageError: something cannot be deleted; what comes after it is left.
    """
    still = set(find(config).items)
    items = [item for item in findings.items if item in still]
    for item in items:
        for place in item.places:
            location = storage.join(findings.folder, place)
            storage.unseal(location)
            storage.delete(location)
    return sum(item.size for item in items)


def table(findings: Findings) -> str:
    """The findings for people."""
    items = sorted(findings.items, key=lambda item: -item.size)
    lines = [f"{storage.size_text(item.size):>10}  {', '.join(item.places)}: {item.reason}" for item in items]
    total = f"{storage.size_text(findings.size):>10}  in all, in {findings.folder}" if items else "nothing to delete"
    return "\n".join([*lines, total, *(f"note: {note}" for note in findings.notes)])


Found = Iterator[tuple[tuple[str, ...], str]]


class _Tree:
    """The files of an experiment by their names below its folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files = {info.location[len(folder) + 1 :]: info for info in storage.list_files(folder)}
        places = [name.rpartition("/")[0] for name in self.files if name.rpartition("/")[2] == records.RECORD]
        self.records = {place: self.json(f"{place}/{records.RECORD}") for place in places}

    def json(self, name: str) -> Any:
        return storage.read_json(storage.join(self.folder, name))

    def finished(self, place: str) -> bool:
        """Whether a folder has a record that says so."""
        return self.records.get(place, {}).get("finished") is not None

    def below(self, place: str) -> list[storage.FileInfo]:
        """Files of a folder, or the file."""
        return [info for name, info in self.files.items() if name == place or name.startswith(place + "/")]

    def size(self, place: str) -> int:
        return sum(info.size for info in self.below(place))

    def changed(self, place: str) -> float:
        return max(info.changed for info in self.below(place))

    def busy(self) -> str | None:
        """The unfinished folder that was written to a short while ago, if there is one."""
        for place, record in sorted(self.records.items()):
            seconds = time.time() - self.changed(place)
            if record["finished"] is None and seconds < BUSY_S and not self._stopped(place):
                return f"{place} is not finished and was written to {seconds / 60:.0f} minutes ago"
        return None

    def _stopped(self, place: str) -> bool:
        """Whether it is a trial that the finished search stopped early."""
        return place.startswith("tune/trials/") and self.finished("tune")

    def holds(self, place: str) -> bool:
        """Whether it lies in the folder itself and not behind a link."""
        if storage.is_remote(self.folder):
            return True
        folder = os.path.realpath(storage.resolve(self.folder)[1])
        return os.path.realpath(os.path.join(folder, place)) == os.path.join(folder, place)


def _epochs(tree: _Tree, *, idle: bool) -> Found:
    """Checkpoints and states that their run does not name: a crash came before they were named, or before they went."""
    kept = {(match["run"], match["name"]) for name in tree.files if (match := _KEPT.fullmatch(name))}
    for run in sorted({run for run, _ in kept}):
        if run not in tree.records or not (idle or tree.finished(run)):
            continue
        state = tree.json(f"{run}/{STATE}") if f"{run}/{STATE}" in tree.files else {}
        named = set(state.get("folders", ()))
        for name in sorted(name for of, name in kept if of == run and name not in named):
            sealed = f"{run}/{name}/{storage.SEAL}" in tree.files
            why = (
                "state of a finished run"
                if tree.finished(run) and name.startswith("resume")
                else "not its run's any more"
            )
            yield (f"{run}/{name}",), why if sealed else "never finished"


def _trials(tree: _Tree) -> Found:
    """Weights of all trials but the best, once the search is finished."""
    if not tree.finished("tune") or "tune/trials.json" not in tree.files:
        return
    best = tree.json("tune/trials.json")[0]["trial"]
    names = {name.split("/")[2] for name in tree.files if name.startswith("tune/trials/") and name.count("/") > 2}
    for name in sorted(names - {str(best)}):
        trial = f"tune/trials/{name}"
        if f"{trial}/{STATE}" not in tree.files:
            continue
        state = tree.json(f"{trial}/{STATE}")
        named = [f"{trial}/{folder}" for folder in state["folders"]]
        if named := [place for place in named if tree.below(place)]:
            yield (f"{trial}/{STATE}", *named), "weights of a trial that did not win; its result is in trials.json"


def _search_state(tree: _Tree) -> Found:
    if tree.finished("tune") and tree.below("tune/ray"):
        yield ("tune/ray",), "Ray Tune's own state; the search is finished"


def _train_state(tree: _Tree) -> Found:
    if tree.below("ray"):
        yield ("ray",), "Ray Train's own state; nothing reads it"


def _temporary(tree: _Tree, found: list[str]) -> Found:
    """Unfinished files, but for those in folders that go anyway."""
    for name, info in tree.files.items():
        old = time.time() - info.changed > BUSY_S
        if old and _TEMPORARY.fullmatch(info.name) and not any(name.startswith(place + "/") for place in found):
            yield (name,), "a write that was never finished"


def _shards(tree: _Tree) -> Found:
    if not tree.finished("prepare") or f"prepare/{MANIFEST_FILE}" not in tree.files:
        return
    table = storage.read_table(storage.join(tree.folder, "prepare", MANIFEST_FILE), columns=["shard"])
    used = set(table["shard"].unique().to_pylist())
    for name in sorted(tree.files):
        folder, _, shard = name.rpartition("/")
        if shard in used or _TEMPORARY.fullmatch(shard):
            continue
        if folder == f"prepare/{SHARDS}":
            yield (name,), "no shard of the manifest's"
        elif folder.startswith(f"prepare/{FEATURES}/"):
            yield (name,), "features of a shard that the manifest does not name"


def _logits(tree: _Tree) -> Found:
    """Logits of another checkpoint than the finished teacher's."""
    found = {match["place"]: match for name in tree.files if (match := _LOGITS.fullmatch(name))}
    for place, match in sorted(found.items()):
        teacher = f"teachers/{match['teacher']}"
        if not tree.finished(teacher):
            continue
        state = tree.json(f"{teacher}/{STATE}")
        try:
            seal = tree.json(f"{teacher}/{state['best']}/{storage.SEAL}")
        except StorageError:  # a teacher without its checkpoint has to be looked after first
            continue
        if match["key"] != records.digest(seal):
            yield (place,), f"logits of another {match['teacher']} than the one there now"
