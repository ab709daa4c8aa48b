"""The prepare stage: corpora in, validated manifest and 16 kHz mono FLAC in Parquet shards out.

Run again, it compares the corpora with what is prepared: only clips that are new or changed are decoded, labels are
taken over, and clips that are gone leave the manifest. Old shards stay, for runs that may be reading them.
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from lakd_ray import records, storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Audio, Experiment, dump
from lakd_ray.corpora.clip import Clip
from lakd_ray.data import duplicates, shards, sources
from lakd_ray.data.manifest import MANIFEST_FILE, SHARDS
from lakd_ray.data.shards import Outcome
from lakd_ray.data.sources import Found
from lakd_ray.errors import DataError
from lakd_ray.schema import MANIFEST, QUARANTINE, TRANSIENT

QUARANTINE_FILE = "quarantine.parquet"
_SHOWN = 5  # clips named in a message

Rows = list[dict[str, Any]]


def made_by(config: Experiment) -> dict[str, Any]:
    """What the stage's outputs depend on, besides what lies in the corpora."""
    without = ("split", "synthetic")
    described = [{key: value for key, value in dump(corpus).items() if key not in without} for corpus in config.corpora]
    return {
        "stage": "prepare",
        "storage": "{storage}",  # outputs may be moved; a root below them is named by placeholder
        "languages": list(config.languages),
        "corpora": described,
        "audio": {key: value for key, value in dump(config.audio).items() if key != "max_quarantined"},
    }


def run(config: Experiment) -> str:
    """Bring shards and manifest up to the corpora, return the stage's folder.

    Raises:
        DataError: a corpus cannot be read, or more clips than allowed were quarantined.
        StageError: the folder was made by another configuration.
    """
    folder = config.stage_folder("prepare")
    wanted = made_by(config)
    done = records.is_done(folder, wanted) and _shards_are_there(folder)
    if done and (where := sources.unreachable(config)):
        print(f"prepare: already done, {folder}; not compared with corpus {where[0]}")
        return folder
    found = [sources.find(corpus, config) for corpus in config.corpora]
    state = records.digest([*(corpus.digest for corpus in found), config.audio.max_quarantined])
    if done and (records.read(folder) or {}).get("corpora") == state:
        print(f"prepare: already done, {folder}")
        return folder
    records.start(folder, wanted)
    before = _ids(folder)
    rows, quarantine = _prepare(found, folder, config.audio)
    storage.write_table(storage.join(folder, QUARANTINE_FILE), pa.Table.from_pylist(quarantine, schema=QUARANTINE))
    storage.write_table(storage.join(folder, MANIFEST_FILE), pa.Table.from_pylist(rows, schema=MANIFEST))
    again = any(row["kind"] in TRANSIENT for row in quarantine)
    records.finish(folder, wanted, [MANIFEST_FILE, QUARANTINE_FILE], corpora=None if again else state)
    print(_summary(rows, quarantine, folder))
    if gone := sorted(before - {row["utterance"] for row in (*rows, *quarantine)}):
        print(f"prepare: {len(gone)} clips are no longer in the corpora: {_some(gone)}")
    return folder


def _shards_are_there(folder: str) -> bool:
    there = {info.name for info in storage.list_files(storage.join(folder, SHARDS))}
    named = storage.read_table(storage.join(folder, MANIFEST_FILE), columns=["shard"])["shard"]
    return set(named.unique().to_pylist()) <= there


def _ids(folder: str) -> set[str]:
    """Utterances that are prepared or quarantined so far."""
    tables = [storage.join(folder, name) for name in (MANIFEST_FILE, QUARANTINE_FILE)]
    return {
        name
        for location in tables
        if storage.exists(location)
        for name in storage.read_table(location, columns=["utterance"])["utterance"].to_pylist()
    }


def _prepare(found: list[Found], folder: str, audio: Audio) -> tuple[Rows, Rows]:
    """Manifest and quarantine rows of all corpora, both sorted by utterance; decodes what the shards do not know."""
    shard_folder = storage.join(folder, SHARDS)
    known = shards.index(shard_folder, audio)
    rows: Rows = []
    quarantine: Rows = []
    for corpus in found:
        new = [(key, clip) for key, clip in zip(corpus.keys, corpus.clips, strict=True) if key not in known]
        for reason, count in sorted(corpus.left_out.items()):
            print(f"prepare: {corpus.corpus.name}: {count} recordings left out: {reason}")
        if kept := len(corpus.clips) - len(new):
            print(f"prepare: {corpus.corpus.name}: {kept} clips as they were, {len(new)} new or changed")
        if new:
            known |= shards.write(corpus.corpus.name, new, shard_folder, audio)
        accepted, refused = _divide(corpus, known)
        _check_share(corpus, accepted, refused, audio)
        rows += accepted
        quarantine += refused
    if audio.duplicates == "quarantine":
        rows, copies = duplicates.divide(rows)
        quarantine += [_refusal(row["corpus"], row, "duplicate", reason) for row, reason in copies]
        for corpus in found:
            _check_share(corpus, _of(corpus, rows), _of(corpus, quarantine), audio)
    return sorted(rows, key=_order), sorted(quarantine, key=_order)


def _of(found: Found, rows: Rows) -> Rows:
    return [row for row in rows if row["corpus"] == found.corpus.name]


def _order(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["utterance"]), str(row["source"])


def _divide(found: Found, known: dict[str, Outcome]) -> tuple[Rows, Rows]:
    """A corpus's clips and problems as manifest and quarantine rows."""
    name = found.corpus.name
    accepted: Rows = []
    refused: Rows = []
    for key, clip in zip(found.keys, found.clips, strict=True):
        outcome = known[key]
        if "kind" in outcome:
            row = {"utterance": f"{name}/{clip.id}", "source": clip.source}
            refused.append(_refusal(name, row, outcome["kind"], outcome["reason"]))
        else:
            accepted.append(_labels(name, clip) | outcome)
    for problem in found.problems:
        row = {"utterance": f"{name}/{problem.id}", "source": problem.source}
        refused.append(_refusal(name, row, problem.kind, problem.reason))
    return accepted, refused


def _labels(corpus: str, clip: Clip) -> dict[str, Any]:
    return {
        "utterance": f"{corpus}/{clip.id}",
        "corpus": corpus,
        "language": clip.language,
        "speaker": f"{corpus}:{clip.speaker}",
        "session": clip.session,
        "sentence": clip.sentence,
        "emotion": clip.emotion,
        "split": clip.split,
        "source": clip.source,
        "start": clip.start,
        "end": clip.end,
    }


def _refusal(corpus: str, row: dict[str, Any], kind: str, reason: str) -> dict[str, Any]:
    return {
        "utterance": row["utterance"],
        "corpus": corpus,
        "source": row["source"],
        "kind": kind,
        "reason": reason,
    }


def _check_share(found: Found, accepted: Rows, refused: Rows, audio: Audio) -> None:
    """No clip may disappear, and not too many may be refused."""
    name = found.corpus.name
    if len(accepted) + len(refused) != found.count:
        raise DataError(f"{name}: {found.count} clips found, but {len(accepted)} accepted + {len(refused)} quarantined")
    if not accepted or len(refused) > audio.max_quarantined * found.count:
        shown = "\n  ".join(f"{row['source']}: {row['reason']}" for row in refused[:_SHOWN])
        raise DataError(
            f"{name}: {len(refused)} of {found.count} clips cannot be used ({_kinds(refused)}), more than "
            f"audio.max_quarantined={audio.max_quarantined} allows. The first:\n  {shown}\n"
            "Mend them, leave them out, or raise the limit."
        )


def _kinds(quarantine: Rows) -> str:
    counts = Counter(row["kind"] for row in quarantine)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _summary(rows: Rows, quarantine: Rows, folder: str) -> str:
    languages = Counter(row["language"] for row in rows)
    hours = sum(row["num_samples"] for row in rows) / SAMPLE_RATE / 3600
    each = ", ".join(f"{language} {count}" for language, count in sorted(languages.items()))
    kinds = f" ({_kinds(quarantine)})" if quarantine else ""
    cut = sum(row["cut"] for row in rows)
    return (
        f"prepare: {len(rows)} utterances ({each}), {hours:.2f} h, {cut} cut at audio.max_seconds, "
        f"{len(quarantine)} quarantined{kinds} -> {folder}"
    )
