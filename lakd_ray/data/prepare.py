"""Convert corpora to a validated manifest and to Parquet shards of 16 kHz mono FLAC (the stage `prepare`).

A second run compares the corpora with the prepared data: only new or changed clips are decoded, labels are updated, and
deleted clips leave the manifest. Old shards stay, because runs may be reading them.
"""

import logging
from collections import Counter
from typing import Any

import pyarrow as pa

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import AudioConfig, Experiment, to_dict
from lakd_ray.corpora.items import Clip
from lakd_ray.data import class_coverage, corpus_snapshot, deduplicate, shards, speaker_aliases
from lakd_ray.data.corpus_snapshot import CorpusSnapshot
from lakd_ray.data.manifest import MANIFEST_FILE, SHARDS_FOLDER
from lakd_ray.data.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, TRANSIENT_KINDS
from lakd_ray.data.shards import ClipResult
from lakd_ray.errors import DataError
from lakd_ray.runs import record

logger = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.parquet"
_MAX_LISTED = 5  # clips listed in a message

RowDicts = list[dict[str, Any]]


def fingerprint_inputs(config: Experiment) -> dict[str, Any]:
    """Return the settings that the stage's outputs depend on, besides the content of the corpora."""
    excluded = ("split", "synthetic", "dataset")
    excluded_audio = ("max_quarantined_fraction", "acoustic_duplicates")
    corpus_settings = [
        {key: value for key, value in to_dict(corpus).items() if key not in excluded} for corpus in config.corpora
    ]
    return {
        "stage": "prepare",
        "storage": "{storage}",  # outputs may be moved, so a root below them is written with a placeholder
        "languages": list(config.languages),
        "corpora": corpus_settings,
        "audio": {key: value for key, value in to_dict(config.audio).items() if key not in excluded_audio},
    }


def prepare_corpora(config: Experiment) -> str:
    """Update shards and manifest to the current corpora; return the stage's folder.

    Raises:
        DataError: a corpus cannot be read, or more clips than allowed were quarantined.
        ConfigError: `speaker_aliases` has a name that is not in the corpora.
        StageError: the folder was written with a different configuration.
        LeaseError: a different process is writing it.
    """
    folder = config.stage_folder("prepare")
    fingerprint = fingerprint_inputs(config)
    done = record.is_done(folder, fingerprint) and _all_shards_exist(folder)
    if done and (unreachable := corpus_snapshot.unreachable_corpora(config)):
        logger.info(f"prepare: already done: {folder}; not compared with corpus {unreachable[0]}")
        return folder
    snapshots = [corpus_snapshot.take_snapshot(corpus, config) for corpus in config.corpora]
    speaker_aliases.check_names(_speakers(snapshots), config)
    state = record.digest(
        [*(corpus.digest for corpus in snapshots), config.audio.max_quarantined_fraction]
        + ([to_dict(config)["speaker_aliases"]] if config.speaker_aliases else [])
    )
    if done and (record.read_record(folder) or {}).get("corpora") == state:
        logger.info(f"prepare: already done: {folder}")
        return folder
    with storage.hold(config.owner_folder("prepare")):
        _write_stage(config, folder, fingerprint, snapshots, state)
    return folder


def _write_stage(
    config: Experiment, folder: str, fingerprint: dict[str, Any], snapshots: list[CorpusSnapshot], state: str
) -> None:
    """Write shards, manifest and record; `state` is the digest of the corpora."""
    record.mark_started(folder, fingerprint)
    previous = _prepared_utterances(folder)
    rows, quarantine = _prepare_corpora(snapshots, folder, config)
    storage.write_table(
        storage.join(folder, QUARANTINE_FILE), pa.Table.from_pylist(quarantine, schema=QUARANTINE_SCHEMA)
    )
    manifest = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    storage.write_table(storage.join(folder, MANIFEST_FILE), manifest)
    has_transient = any(row["kind"] in TRANSIENT_KINDS for row in quarantine)
    record.mark_finished(
        folder, fingerprint, [MANIFEST_FILE, QUARANTINE_FILE], corpora=None if has_transient else state
    )
    logger.info(_summary(rows, quarantine, folder))
    for sentence in class_coverage.describe_all_splits(manifest, config):
        logger.info(f"prepare: {sentence}")
    if deleted := sorted(previous - {row["utterance"] for row in (*rows, *quarantine)}):
        logger.info(f"prepare: {len(deleted)} clips are no longer in the corpora: {_format_names(deleted)}")


def _all_shards_exist(folder: str) -> bool:
    existing = {info.name for info in storage.list_files(storage.join(folder, SHARDS_FOLDER))}
    referenced = storage.read_table(storage.join(folder, MANIFEST_FILE), columns=["shard"])["shard"]
    return set(referenced.unique().to_pylist()) <= existing


def _prepared_utterances(folder: str) -> set[str]:
    """Return the utterances that are already prepared or quarantined."""
    tables = [storage.join(folder, name) for name in (MANIFEST_FILE, QUARANTINE_FILE)]
    return {
        name
        for location in tables
        if storage.exists(location)
        for name in storage.read_table(location, columns=["utterance"])["utterance"].to_pylist()
    }


def _speakers(snapshots: list[CorpusSnapshot]) -> set[str]:
    return {f"{corpus.corpus.name}:{clip.speaker}" for corpus in snapshots for clip in corpus.clips}


def _prepare_corpora(snapshots: list[CorpusSnapshot], folder: str, config: Experiment) -> tuple[RowDicts, RowDicts]:
    """Return manifest and quarantine rows of all corpora, sorted by utterance; decode clips that no shard has."""
    audio = config.audio
    shard_folder = storage.join(folder, SHARDS_FOLDER)
    known = shards.load_clip_index(shard_folder, audio)
    rows: RowDicts = []
    quarantine: RowDicts = []
    for corpus in snapshots:
        new = [(key, clip) for key, clip in zip(corpus.audio_keys, corpus.clips, strict=True) if key not in known]
        for reason, count in sorted(corpus.excluded.items()):
            logger.info(f"prepare: {corpus.corpus.name}: {count} recordings excluded: {reason}")
        if unchanged := len(corpus.clips) - len(new):
            logger.info(f"prepare: {corpus.corpus.name}: {unchanged} clips unchanged, {len(new)} new or changed")
        if new:
            known |= shards.write_shards(corpus.corpus.name, new, shard_folder, audio)
        accepted, rejected = _partition_clips(corpus, known)
        _check_quarantined_fraction(corpus, accepted, rejected, audio)
        rows += accepted
        quarantine += rejected
    if audio.on_duplicate == "quarantine":
        rows, copies = deduplicate.drop_duplicates(rows, speaker_aliases.first_names(config))
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
    """Split a corpus's clips into manifest rows and quarantine rows, which include its invalid items."""
    name = snapshot.corpus.name
    accepted: RowDicts = []
    rejected: RowDicts = []
    for key, clip in zip(snapshot.audio_keys, snapshot.clips, strict=True):
        result = clip_results[key]
        if "kind" in result:
            row = {"utterance": f"{name}/{clip.id}", "source": clip.source}
            rejected.append(_quarantine_row(name, row, result["kind"], result["reason"]))
        else:
            accepted.append(_label_columns(name, clip) | result)
    for item in snapshot.invalid_items:
        row = {"utterance": f"{name}/{item.id}", "source": item.source}
        rejected.append(_quarantine_row(name, row, item.kind, item.reason))
    return accepted, rejected


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
    """Check that no clip is lost, and that at most the allowed fraction is quarantined."""
    name = snapshot.corpus.name
    if len(accepted) + len(quarantined) != snapshot.num_items:
        raise DataError(
            f"{name}: {snapshot.num_items} clips found, but {len(accepted)} accepted + {len(quarantined)} quarantined"
        )
    if not accepted or len(quarantined) > audio.max_quarantined_fraction * snapshot.num_items:
        examples = "\n  ".join(f"{row['source']}: {row['reason']}" for row in quarantined[:_MAX_LISTED])
        raise DataError(
            f"{name}: {len(quarantined)} of {snapshot.num_items} clips cannot be used "
            f"({_format_kind_counts(quarantined)}), more than audio.max_quarantined_fraction="
            f"{audio.max_quarantined_fraction} allows. The first:\n  {examples}\n"
            "Fix them, remove them from the corpus, or raise the limit."
        )


def _format_kind_counts(quarantine: RowDicts) -> str:
    counts = Counter(row["kind"] for row in quarantine)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))


def _format_names(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (" ..." if len(names) > _MAX_LISTED else "")


def _summary(rows: RowDicts, quarantine: RowDicts, folder: str) -> str:
    languages = Counter(row["language"] for row in rows)
    hours = sum(row["num_samples"] for row in rows) / SAMPLE_RATE / 3600
    counts = ", ".join(f"{language} {count}" for language, count in sorted(languages.items()))
    kinds = f" ({_format_kind_counts(quarantine)})" if quarantine else ""
    truncated = sum(row["cut"] for row in rows)
    return (
        f"prepare: {len(rows)} utterances ({counts}), {hours:.2f} h, {truncated} cut at audio.max_seconds, "
        f"{len(quarantine)} quarantined{kinds} -> {folder}"
    )
