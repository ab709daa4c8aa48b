"""The prepare stage: corpora in, validated manifest and 16 kHz mono FLAC in Parquet shards out, by Ray Data."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data
from tqdm import tqdm

from lakd_ray import corpora, records, storage
from lakd_ray.audio import SAMPLE_RATE, Wave, decode, encode_flac, to_int16
from lakd_ray.config import Audio, Corpus, Experiment, dump
from lakd_ray.corpora import recordings
from lakd_ray.corpora.clip import Clip, Problem
from lakd_ray.data.manifest import MANIFEST_FILE, SHARDS
from lakd_ray.data.stream import quiet_and_ordered
from lakd_ray.errors import DataError, LakdError
from lakd_ray.schema import MANIFEST, QUARANTINE, SHARD

QUARANTINE_FILE = "quarantine.parquet"
_SHOWN = 5  # quarantined clips named in an error


def made_by(config: Experiment) -> dict[str, Any]:
    """What the stage's outputs depend on."""
    sources = [{key: value for key, value in dump(corpus).items() if key != "split"} for corpus in config.corpora]
    return {
        "stage": "prepare",
        "storage": "{storage}",  # outputs may be moved; a root below them is named by placeholder
        "languages": list(config.languages),
        "corpora": sources,
        "audio": dump(config.audio),
    }


def run(config: Experiment) -> str:
    """Read every corpus, write shards and manifest, return the stage's folder. Skips what is done.

    Raises:
        DataError: a corpus cannot be read, or more clips than allowed were quarantined.
        StageError: the folder was made by another configuration.
    """
    folder = config.stage_folder("prepare")
    wanted = made_by(config)
    if records.is_done(folder, wanted):
        print(f"prepare: already done, {folder}")
        return folder
    found = [
        (corpus, *corpora.read(corpus, languages=config.languages, storage_root=config.storage))
        for corpus in config.corpora
    ]
    records.start(folder, wanted)
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    for corpus, clips, problems in found:
        accepted, refused = _write_corpus(config, corpus, clips, folder)
        refused += [_refusal(corpus, problem) for problem in problems]
        _check_share(corpus, accepted, refused, len(clips) + len(problems), config.audio)
        rows += accepted
        quarantine += refused
    rows.sort(key=lambda row: str(row["utterance"]))
    storage.write_table(storage.join(folder, MANIFEST_FILE), pa.Table.from_pylist(rows, schema=MANIFEST))
    storage.write_table(storage.join(folder, QUARANTINE_FILE), pa.Table.from_pylist(quarantine, schema=QUARANTINE))
    shards = sorted({f"{SHARDS}/{row['shard']}" for row in rows})
    records.finish(folder, wanted, [MANIFEST_FILE, QUARANTINE_FILE, *shards])
    print(_summary(rows, quarantine, folder))
    return folder


def _write_corpus(
    config: Experiment, corpus: Corpus, clips: list[Clip], folder: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Encode a corpus's clips into shards, one Ray Data block a shard; returns manifest and quarantine rows."""
    plan = list(_plan_shards(corpus, clips, config.audio))
    quiet_and_ordered()
    source = ray.data.from_items(plan, override_num_blocks=len(plan))
    encode = partial(_write_shard, audio=dump(config.audio), folder=storage.join(folder, SHARDS))
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    with tqdm(total=len(clips), desc=f"prepare {corpus.name}", unit="clip", mininterval=2) as bar:
        for result in source.map(encode, num_cpus=1).iter_rows():
            rows += result["rows"]
            quarantine += result["quarantine"]
            bar.update(len(result["rows"]) + len(result["quarantine"]))
    return rows, quarantine


def _plan_shards(corpus: Corpus, clips: list[Clip], audio: Audio) -> Iterator[dict[str, Any]]:
    """Clips of one language, in an order that is random but fixed, cut into shards."""
    for language in sorted({clip.language for clip in clips}):
        chosen = sorted(
            (clip for clip in clips if clip.language == language),
            key=lambda clip: hashlib.sha256(f"{corpus.name}/{clip.id}".encode()).digest(),
        )
        for number, start in enumerate(range(0, len(chosen), audio.shard_utterances)):
            part = chosen[start : start + audio.shard_utterances]
            name = f"{corpus.name}-{language}-{number:05d}.parquet"
            yield {"shard": name, "corpus": corpus.name, "clips": [vars(clip) for clip in part]}


def _write_shard(item: dict[str, Any], audio: dict[str, Any], folder: str) -> dict[str, Any]:
    """Decode, encode and write one shard (runs in a Ray Data task); returns its manifest and quarantine rows."""
    limits = Audio.model_validate(audio)
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, Any]] = []
    for clip in (Clip(**entry) for entry in item["clips"]):
        try:
            wave_T = _read_clip(clip, limits)
        except LakdError as error:
            quarantine.append(_refusal(item["corpus"], Problem(clip.id, clip.source, str(error))))
            continue
        rows.append(_shard_row(item["corpus"], clip, wave_T))
    if rows:
        table = pa.Table.from_pylist(rows, schema=SHARD)
        storage.write_table(storage.join(folder, item["shard"]), table, row_group_size=limits.row_group_utterances)
    for index, row in enumerate(rows):
        del row["audio"]
        row["shard"] = item["shard"]
        row["row_group"], row["row"] = divmod(index, limits.row_group_utterances)
    return {"rows": rows, "quarantine": quarantine}


def _read_clip(clip: Clip, limits: Audio) -> Wave:
    wave_T = decode(recordings.read(clip.source), where=clip.source, max_seconds=limits.max_seconds)
    if len(wave_T) < limits.min_seconds * SAMPLE_RATE:
        raise DataError(f"{len(wave_T) / SAMPLE_RATE:.3f} s long, shorter than audio.min_seconds={limits.min_seconds}")
    return wave_T


def _shard_row(corpus: str, clip: Clip, wave_T: Wave) -> dict[str, Any]:
    samples_T = to_int16(wave_T)
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
        "num_samples": len(samples_T),
        "audio_sha256": hashlib.sha256(samples_T.tobytes()).hexdigest(),
        "audio": encode_flac(samples_T),
    }


def _refusal(corpus: Corpus | str, problem: Problem) -> dict[str, Any]:
    name = corpus if isinstance(corpus, str) else corpus.name
    return {"utterance": f"{name}/{problem.id}", "corpus": name, "source": problem.source, "reason": problem.reason}


def _check_share(
    corpus: Corpus, accepted: list[dict[str, Any]], refused: list[dict[str, Any]], found: int, audio: Audio
) -> None:
    """No clip may disappear, and not too many may be refused."""
    if len(accepted) + len(refused) != found:
        raise DataError(
            f"{corpus.name}: {found} clips found, but {len(accepted)} accepted + {len(refused)} quarantined"
        )
    if not accepted or len(refused) > audio.max_quarantined * found:
        shown = "\n  ".join(f"{row['source']}: {row['reason']}" for row in refused[:_SHOWN])
        raise DataError(
            f"{corpus.name}: {len(refused)} of {found} clips cannot be used, more than audio.max_quarantined="
            f"{audio.max_quarantined} allows. The first:\n  {shown}\nMend them, leave them out, or raise the limit."
        )


def _summary(rows: list[dict[str, Any]], quarantine: list[dict[str, Any]], folder: str) -> str:
    languages = Counter(row["language"] for row in rows)
    hours = sum(row["num_samples"] for row in rows) / SAMPLE_RATE / 3600
    each = ", ".join(f"{language} {count}" for language, count in sorted(languages.items()))
    return f"prepare: {len(rows)} utterances ({each}), {hours:.2f} h, {len(quarantine)} quarantined -> {folder}"
