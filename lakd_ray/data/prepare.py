"""The prepare stage: corpora in, validated manifest and 16 kHz mono FLAC in Parquet shards out.

Run again, it compares the corpora with what is prepared: only clips that are new or changed are decoded, labels are
taken over, and clips that are gone leave the manifest. Old shards stay, for runs that may be reading them.
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import AudioConfig, Experiment, to_dict
from lakd_ray.corpora.items import Clip
from lakd_ray.data import corpus_snapshot, deduplicate, shards
from lakd_ray.data.corpus_snapshot import CorpusSnapshot
from lakd_ray.data.manifest import MANIFEST_FILE, SHARDS_FOLDER
from lakd_ray.data.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, TRANSIENT_KINDS
from lakd_ray.data.shards import ClipResult
from lakd_ray.errors import DataError
from lakd_ray.runs import record

QUARANTINE_FILE = "quarantine.parquet"
_MAX_LISTED = 5  # clips named in a message

RowDicts = list[dict[str, Any]]


def fingerprint_inputs(config: Experiment) -> dict[str, Any]:
    """What the stage's outputs depend on, besides what lies in the corpora."""
    without = ("split", "synthetic")
    described = [
        {key: value for key, value in to_dict(corpus).items() if key not in without} for corpus in config.corpora
    ]
    return {
        "stage": "prepare",
        "storage": "{storage}",  # outputs may be moved; a root below them is named by placeholder
        "languages": list(config.languages),
        "corpora": described,
        "audio": {key: value for key, value in to_dict(config.audio).items() if key != "max_quarantined_fraction"},
    }


def run(config: Experiment) -> str:
    """Bring shards and manifest up to the corpora, return the stage's folder.

    Raises:
        DataError: a corpus cannot be read, or more clips than allowed were quarantined.
        StageError: the folder was made by another configuration.
    """
    folder = config.stage_folder("prepare")
    wanted = fingerprint_inputs(config)
    done = record.is_done(folder, wanted) and _all_shards_exist(folder)
    if done and (where := corpus_snapshot.unreachable_corpora(config)):
        print(f"prepare: already done, {folder}; not compared with corpus {where[0]}")
        return folder
    found = [corpus_snapshot.take_snapshot(corpus, config) for corpus in config.corpora]
    state = record.digest([*(corpus.digest for corpus in found), config.audio.max_quarantined_fraction])
    if done and (record.read_record(folder) or {}).get("corpora") == state:
        print(f"prepare: already done, {folder}")
        return folder
    record.mark_started(folder, wanted)
    before = _prepared_utterances(folder)
    rows, quarantine = _prepare_corpora(found, folder, config.audio)
    storage.write_table(
        storage.join(folder, QUARANTINE_FILE), pa.Table.from_pylist(quarantine, schema=QUARANTINE_SCHEMA)
    )
    storage.write_table(storage.join(folder, MANIFEST_FILE), pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    again = any(row["kind"] in TRANSIENT_KINDS for row in quarantine)
    record.mark_finished(folder, wanted, [MANIFEST_FILE, QUARANTINE_FILE], corpora=None if again else state)
    print(_summary(rows, quarantine, folder))
    if gone := sorted(before - {row["utterance"] for row in (*rows, *quarantine)}):
        print(f"prepare: {len(gone)} clips are no longer in the corpora: {_format_names(gone)}")
    return folder


def _all_shards_exist(folder: str) -> bool:
    there = {info.name for info in storage.list_files(storage.join(folder, SHARDS_FOLDER))}
    named = storage.read_table(storage.join(folder, MANIFEST_FILE), columns=["shard"])["shard"]
    return set(named.unique().to_pylist()) <= there


def _prepared_utterances(folder: str) -> set[str]:
    """Utterances that are prepared or quarantined so far."""
    tables = [storage.join(folder, name) for name in (MANIFEST_FILE, QUARANTINE_FILE)]
    return {
        name
        for location in tables
        if storage.exists(location)
        for name in storage.read_table(location, columns=["utterance"])["utterance"].to_pylist()
    }


def _prepare_corpora(snapshots: list[CorpusSnapshot], folder: str, audio: AudioConfig) -> tuple[RowDicts, RowDicts]:
    """Manifest and quarantine rows of all corpora, both sorted by utterance; decodes what the shards do not know."""
    shard_folder = storage.join(folder, SHARDS_FOLDER)
    known = shards.load_clip_index(shard_folder, audio)
    rows: RowDicts = []
    quarantine: RowDicts = []
    for corpus in snapshots:
        new = [(key, clip) for key, clip in zip(corpus.audio_keys, corpus.clips, strict=True) if key not in known]
        for reason, count in sorted(corpus.excluded.items()):
            print(f"prepare: {corpus.corpus.name}: {count} recordings left out: {reason}")
        if kept := len(corpus.clips) - len(new):
            print(f"prepare: {corpus.corpus.name}: {kept} clips as they were, {len(new)} new or changed")
        if new:
            known |= shards.write_shards(corpus.corpus.name, new, shard_folder, audio)
        accepted, refused = _partition_clips(corpus, known)
        _check_quarantined_fraction(corpus, accepted, refused, audio)
        rows += accepted
        quarantine += refused
    if audio.on_duplicate == "quarantine":
        rows, copies = deduplicate.drop_duplicates(rows)
        quarantine += [_quarantine_row(row["corpus"], row, "duplicate", reason) for row, reason in copies]
        for corpus in snapshots:
            _check_quarantined_fraction(
                corpus, _rows_of_corpus(corpus, rows), _rows_of_corpus(corpus, quarantine), audio
            )
    return sorted(rows, key=_sort_key), sorted(quarantine, key=_sort_key)


def _rows_of_corpus(snapshot: CorpusSnapshot, rows: RowDicts) -> RowDicts:
    return [row for row in rows if row["corpus"] == snapshot.corpus.name]


def _sort_key(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["utterance"]), str(row["source"])


def _partition_clips(snapshot: CorpusSnapshot, clip_results: dict[str, ClipResult]) -> tuple[RowDicts, RowDicts]:
    """A corpus's clips and problems as manifest and quarantine rows."""
    name = snapshot.corpus.name
    accepted: RowDicts = []
    refused: RowDicts = []
    for key, clip in zip(snapshot.audio_keys, snapshot.clips, strict=True):
        outcome = clip_results[key]
        if "kind" in outcome:
            row = {"utterance": f"{name}/{clip.id}", "source": clip.source}
            refused.append(_quarantine_row(name, row, outcome["kind"], outcome["reason"]))
        else:
            accepted.append(_label_columns(name, clip) | outcome)
    for problem in snapshot.invalid_items:
        row = {"utterance": f"{name}/{problem.id}", "source": problem.source}
        refused.append(_quarantine_row(name, row, problem.kind, problem.reason))
    return accepted, refused


def _label_columns(corpus: str, clip: Clip) -> dict[str, Any]:
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


def _quarantine_row(corpus: str, row: dict[str, Any], kind: str, reason: str) -> dict[str, Any]:
    return {
        "utterance": row["utterance"],
        "corpus": corpus,
        "source": row["source"],
        "kind": kind,
        "reason": reason,
    }


def _check_quarantined_fraction(
    snapshot: CorpusSnapshot, accepted: RowDicts, quarantined: RowDicts, audio: AudioConfig
) -> None:
    """No clip may disappear, and not too many may be refused."""
    name = snapshot.corpus.name
    if len(accepted) + len(quarantined) != snapshot.num_items:
        raise DataError(
            f"{name}: {snapshot.num_items} clips found, but {len(accepted)} accepted + {len(quarantined)} quarantined"
        )
    if not accepted or len(quarantined) > audio.max_quarantined_fraction * snapshot.num_items:
        shown = "\n  ".join(f"{row['source']}: {row['reason']}" for row in quarantined[:_MAX_LISTED])
        raise DataError(
            f"{name}: {len(quarantined)} of {snapshot.num_items} clips cannot be used ({_format_kind_counts(quarantined)}), more than "
            f"audio.max_quarantined_fraction={audio.max_quarantined_fraction} allows. The first:\n  {shown}\n"
            "Mend them, leave them out, or raise the limit."
        )


def _format_kind_counts(quarantine: RowDicts) -> str:
    counts = Counter(row["kind"] for row in quarantine)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def _format_names(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (" ..." if len(names) > _MAX_LISTED else "")


def _summary(rows: RowDicts, quarantine: RowDicts, folder: str) -> str:
    languages = Counter(row["language"] for row in rows)
    hours = sum(row["num_samples"] for row in rows) / SAMPLE_RATE / 3600
    each = ", ".join(f"{language} {count}" for language, count in sorted(languages.items()))
    kinds = f" ({_format_kind_counts(quarantine)})" if quarantine else ""
    cut = sum(row["cut"] for row in rows)
    return (
        f"prepare: {len(rows)} utterances ({each}), {hours:.2f} h, {cut} cut at audio.max_seconds, "
        f"{len(quarantine)} quarantined{kinds} -> {folder}"
    )
