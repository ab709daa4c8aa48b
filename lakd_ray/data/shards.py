"""Shards: FLAC in Parquet, written by Ray Data tasks.

A shard is named by the SHA-256 of its bytes (`<corpus>-<language>-<first 16 digits>.parquet`): nothing is ever
overwritten, and damage shows (`damaged`). It tells what became of every clip of its task: accepted ones are rows,
refused ones are listed in the file's metadata. So the shards together are the memory of the stage (`index`): whatever
was interrupted or has changed, a clip whose key (`lakd_ray.data.sources`) they know is not decoded again.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.util.annotations import RayDeprecationWarning
from tqdm import tqdm

from lakd_ray import storage
from lakd_ray.audio.apart import Apart
from lakd_ray.config import Audio, dump
from lakd_ray.corpora import recordings
from lakd_ray.corpora.clip import Clip
from lakd_ray.data.quality import admit
from lakd_ray.data.stream import quiet_and_ordered
from lakd_ray.errors import ClipError, DataError, LakdError, StorageError
from lakd_ray.schema import SHARD, TRANSIENT

# What became of a clip: its place in a shard, or the kind and reason of a refusal.
Outcome = dict[str, Any]
# Clips of one shard to be: name, clips [{key, corpus, clip}].
Task = dict[str, Any]
_REFUSED = b"lakd.refused"
_DECODER_DEATHS = 2  # times a task is started again after its process died, before its clips are decoded one by one
_READERS = 16


def index(folder: str, audio: Audio) -> dict[str, Outcome]:
    """What the shards in a folder know: key -> outcome. Damaged ones are named and count as absent."""
    names = [info.name for info in storage.list_files(folder)]
    known: dict[str, Outcome] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for outcomes in pool.map(partial(_read_index, folder=folder, audio=audio), sorted(names)):
            known |= outcomes
    return known


def _read_index(name: str, folder: str, audio: Audio) -> dict[str, Outcome]:
    columns = ["recording", "num_samples", "cut", "audio_sha256"]
    try:
        table = storage.read_table(storage.join(folder, name), columns=columns)
    except StorageError as error:
        print(f"prepare: shard {name} cannot be read, its clips are made anew ({error})")
        return {}
    outcomes = _placed(table.to_pylist(), name, audio)
    refused: dict[str, Outcome] = json.loads((table.schema.metadata or {}).get(_REFUSED, b"{}"))
    return outcomes | refused


def _placed(rows: list[dict[str, Any]], name: str, audio: Audio) -> dict[str, Outcome]:
    outcomes = {}
    for number, row in enumerate(rows):
        row_group, place = divmod(number, audio.row_group_utterances)
        kept = {column: row[column] for column in ("num_samples", "cut", "audio_sha256")}
        outcomes[row["recording"]] = {**kept, "shard": name, "row_group": row_group, "row": place}
    return outcomes


def damaged(folder: str) -> list[str]:
    """Names of shards whose bytes are not those that were written. Reads all of them."""
    files = [info.name for info in storage.list_files(folder)]
    return [name for name in files if _fingerprint(storage.read_bytes(storage.join(folder, name))) not in name]


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write(corpus: str, clips: Iterable[tuple[str, Clip]], folder: str, audio: Audio) -> dict[str, Outcome]:
    """Decode and encode clips, each with its key, into shards; returns key -> outcome for all of them.

    A recording can kill the process that decodes it (libsndfile is C). Ray would start such a task again for ever; here
    it does so a few times, and then the task's clips are decoded in a process that may die.

    Raises:
        StorageError: a shard cannot be written.
        DataError: a task was lost for good.
    """
    plan = list(_plan(corpus, clips, audio))
    known: dict[str, Outcome] = {}
    with tqdm(total=sum(len(task["clips"]) for task in plan), desc=f"prepare {corpus}", unit="clip") as bar:
        for alone in (False, True):
            lost = [task for task in plan if task["clips"][0]["key"] not in known]
            if alone and lost:
                bar.write(
                    f"prepare: {len(lost)} tasks died while decoding; decoding their clips one by one", sys.stderr
                )
            for outcomes in _execute(lost, folder, audio, alone=alone):
                known |= outcomes
                bar.update(len(outcomes))
    lost = [task for task in plan if task["clips"][0]["key"] not in known]
    if lost:
        sources = ", ".join(entry["clip"]["source"] for entry in lost[0]["clips"][:3])
        raise DataError(f"{corpus}: {len(lost)} tasks died for good, the first with {sources} ...; see Ray's logs")
    return known


def _plan(corpus: str, clips: Iterable[tuple[str, Clip]], audio: Audio) -> Iterator[Task]:
    """Clips of one language, in an order that is random but fixed, cut into tasks."""
    keyed = list(clips)
    chosen: list[dict[str, Any]]
    for language in sorted({clip.language for _, clip in keyed}):
        chosen = sorted(
            ({"key": key, "corpus": corpus, "clip": vars(clip)} for key, clip in keyed if clip.language == language),
            key=lambda entry: hashlib.sha256(f"{corpus}/{entry['clip']['id']}".encode()).digest(),
        )
        for start in range(0, len(chosen), audio.shard_utterances):
            part = chosen[start : start + audio.shard_utterances]
            yield {"name": f"{corpus}-{language}", "clips": part}


def _execute(plan: list[dict[str, Any]], folder: str, audio: Audio, *, alone: bool) -> Iterator[dict[str, Outcome]]:
    """Run tasks; those whose process died are missing from what is returned."""
    if not plan:
        return
    context = quiet_and_ordered()
    tolerated, context.max_errored_blocks = context.max_errored_blocks, 0 if alone else -1
    try:
        source = ray.data.from_items([json.dumps(task) for task in plan], override_num_blocks=len(plan))
        task = partial(_write_shard, folder=folder, audio=dump(audio), alone=alone)
        with warnings.catch_warnings():
            # Ray 2.60 calls this argument deprecated and has no other way to bound the retries
            warnings.simplefilter("ignore", RayDeprecationWarning)
            results = source.map(task, num_cpus=1, max_retries=_DECODER_DEATHS)
        for result in results.iter_rows():
            if result["error"]:
                raise StorageError(result["error"])
            yield json.loads(result["outcomes"])
    finally:
        context.max_errored_blocks = tolerated


def _write_shard(item: dict[str, Any], folder: str, audio: dict[str, Any], alone: bool) -> dict[str, str]:
    """Decode, encode and write one shard (runs in a Ray Data task); returns outcomes or an error, as text."""
    task, limits = json.loads(item["item"]), Audio.model_validate(audio)
    rows: list[dict[str, Any]] = []
    refused: dict[str, Outcome] = {}
    with Apart() if alone else nullcontext() as apart:
        decode = admit if apart is None else partial(apart.call, admit)
        for key, result in _outcomes(task["clips"], decode, limits):
            if isinstance(result, ClipError):
                refused[key] = {"kind": result.kind, "reason": str(result)}
            else:
                rows.append(result)
    order = {entry["key"]: number for number, entry in enumerate(task["clips"])}
    rows.sort(key=lambda row: order[row["recording"]])
    lasting = {key: outcome for key, outcome in refused.items() if outcome["kind"] not in TRANSIENT}
    try:
        name = _write(task, rows, lasting, folder, limits)
    except LakdError as error:
        return {"outcomes": "{}", "error": str(error)}
    return {"outcomes": json.dumps(refused | _placed(rows, name, limits)), "error": ""}


def _outcomes(
    entries: list[dict[str, Any]], decode: Callable[..., dict[str, Any]], limits: Audio
) -> Iterator[tuple[str, dict[str, Any] | ClipError]]:
    """Each clip's key with its shard row or its refusal. Parts of one recording follow each other: it is read once."""
    last, content = "", b""
    for entry in sorted(entries, key=lambda entry: recordings.reading_order(entry["clip"]["source"])):
        clip = Clip(**entry["clip"])
        try:
            if clip.source != last:
                last, content = "", recordings.content(clip.source)
                last = clip.source
            row = decode(content, where=clip.source, start=clip.start, end=clip.end, limits=limits)
        except ClipError as error:
            yield entry["key"], error
            continue
        yield entry["key"], {"utterance": f"{entry['corpus']}/{clip.id}", "recording": entry["key"], **row}


def _write(
    task: dict[str, Any], rows: list[dict[str, Any]], refused: dict[str, Outcome], folder: str, audio: Audio
) -> str:
    """Write a shard unless there is nothing to remember; returns its name."""
    if not rows and not refused:
        return ""
    table = pa.Table.from_pylist(rows, schema=SHARD.with_metadata({_REFUSED: json.dumps(refused)}))
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        row_group_size=audio.row_group_utterances,
        compression={name: "none" if name == "audio" else "zstd" for name in SHARD.names},  # FLAC is compressed
        use_dictionary=False,
        write_statistics=[name for name in SHARD.names if name != "audio"],
    )
    content = buffer.getvalue().to_pybytes()
    name = f"{task['name']}-{_fingerprint(content)}.parquet"
    storage.write_bytes(storage.join(folder, name), content)
    return name
