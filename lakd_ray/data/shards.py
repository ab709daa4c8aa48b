"""Shards: FLAC in Parquet, written by Ray Data tasks.

A shard is named by the SHA-256 of its bytes (`<corpus>-<language>-<first 16 digits>.parquet`): nothing is ever
overwritten, and damage shows (`damaged`). It tells what became of every clip of its task: accepted ones are rows,
refused ones are listed in the file's metadata. So the shards together are the memory of the stage (`index`): whatever
was interrupted or has changed, a clip whose key (`lakd_ray.data.corpus_snapshot`) they know is not decoded again.
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
from lakd_ray.audio import sources as recordings
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.config import AudioConfig, to_dict
from lakd_ray.corpora.items import Clip
from lakd_ray.data.quality import decode_and_validate
from lakd_ray.data.reader import configure_data_context
from lakd_ray.data.schema import SHARD_SCHEMA, TRANSIENT_KINDS
from lakd_ray.errors import ClipError, DataError, LakdError, StorageError

# What became of a clip: its place in a shard, or the kind and reason of a refusal.
ClipResult = dict[str, Any]
# Clips of one shard to be: name, clips [{key, corpus, clip}].
ShardTask = dict[str, Any]
_REJECTED_KEY = b"lakd.refused"
_MAX_TASK_RETRIES = 2  # times a task is started again after its process died, before its clips are decoded one by one
_NUM_READER_THREADS = 16


def load_clip_index(folder: str, audio: AudioConfig) -> dict[str, ClipResult]:
    """What the shards in a folder know: key -> outcome. Damaged ones are named and count as absent."""
    names = [info.name for info in storage.list_files(folder)]
    known: dict[str, ClipResult] = {}
    with ThreadPoolExecutor(_NUM_READER_THREADS) as pool:
        for outcomes in pool.map(partial(_read_shard_index, folder=folder, audio=audio), sorted(names)):
            known |= outcomes
    return known


def _read_shard_index(name: str, folder: str, audio: AudioConfig) -> dict[str, ClipResult]:
    columns = ["recording", "num_samples", "cut", "audio_sha256"]
    try:
        table = storage.read_table(storage.join(folder, name), columns=columns)
    except StorageError as error:
        print(f"prepare: shard {name} cannot be read, its clips are made anew ({error})")
        return {}
    outcomes = _locate_rows(table.to_pylist(), name, audio)
    refused: dict[str, ClipResult] = json.loads((table.schema.metadata or {}).get(_REJECTED_KEY, b"{}"))
    return outcomes | refused


def _locate_rows(rows: list[dict[str, Any]], name: str, audio: AudioConfig) -> dict[str, ClipResult]:
    outcomes = {}
    for number, row in enumerate(rows):
        row_group, place = divmod(number, audio.row_group_utterances)
        kept = {column: row[column] for column in ("num_samples", "cut", "audio_sha256")}
        outcomes[row["recording"]] = {**kept, "shard": name, "row_group": row_group, "row": place}
    return outcomes


def find_corrupt_shards(folder: str) -> list[str]:
    """Names of shards whose bytes are not those that were written. Reads all of them."""
    files = [info.name for info in storage.list_files(folder)]
    return [name for name in files if _content_hash(storage.read_bytes(storage.join(folder, name))) not in name]


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_shards(
    corpus: str, clips: Iterable[tuple[str, Clip]], folder: str, audio: AudioConfig
) -> dict[str, ClipResult]:
    """Decode and encode clips, each with its key, into shards; returns key -> outcome for all of them.

    A recording can kill the process that decodes it (libsndfile is C). Ray would start such a task again for ever; here
    it does so a few times, and then the task's clips are decoded in a process that may die.

    Raises:
        StorageError: a shard cannot be written.
        DataError: a task was lost for good.
    """
    plan = list(_plan_tasks(corpus, clips, audio))
    known: dict[str, ClipResult] = {}
    with tqdm(total=sum(len(task["clips"]) for task in plan), desc=f"prepare {corpus}", unit="clip") as bar:
        for isolated in (False, True):
            lost = [task for task in plan if task["clips"][0]["key"] not in known]
            if isolated and lost:
                bar.write(
                    f"prepare: {len(lost)} tasks died while decoding; decoding their clips one by one", sys.stderr
                )
            for outcomes in _run_tasks(lost, folder, audio, isolated=isolated):
                known |= outcomes
                bar.update(len(outcomes))
    lost = [task for task in plan if task["clips"][0]["key"] not in known]
    if lost:
        sources = ", ".join(entry["clip"]["source"] for entry in lost[0]["clips"][:3])
        raise DataError(f"{corpus}: {len(lost)} tasks died for good, the first with {sources} ...; see Ray's logs")
    return known


def _plan_tasks(corpus: str, clips: Iterable[tuple[str, Clip]], audio: AudioConfig) -> Iterator[ShardTask]:
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


def _run_tasks(
    tasks: list[dict[str, Any]], folder: str, audio: AudioConfig, *, isolated: bool
) -> Iterator[dict[str, ClipResult]]:
    """Run tasks; those whose process died are missing from what is returned."""
    if not tasks:
        return
    context = configure_data_context()
    tolerated, context.max_errored_blocks = context.max_errored_blocks, 0 if isolated else -1
    try:
        source = ray.data.from_items([json.dumps(task) for task in tasks], override_num_blocks=len(tasks))
        task = partial(_write_shard, folder=folder, audio=to_dict(audio), isolated=isolated)
        with warnings.catch_warnings():
            # Ray 2.60 calls this argument deprecated and has no other way to bound the retries
            warnings.simplefilter("ignore", RayDeprecationWarning)
            results = source.map(task, num_cpus=1, max_retries=_MAX_TASK_RETRIES)
        for result in results.iter_rows():
            if result["error"]:
                raise StorageError(result["error"])
            yield json.loads(result["outcomes"])
    finally:
        context.max_errored_blocks = tolerated


def _write_shard(item: dict[str, Any], folder: str, audio: dict[str, Any], isolated: bool) -> dict[str, str]:
    """Decode, encode and write one shard (runs in a Ray Data task); returns outcomes or an error, as text."""
    task, audio_config = json.loads(item["item"]), AudioConfig.model_validate(audio)
    rows: list[dict[str, Any]] = []
    refused: dict[str, ClipResult] = {}
    with SandboxPool() if isolated else nullcontext() as apart:
        decode = decode_and_validate if apart is None else partial(apart.call, decode_and_validate)
        for key, result in _decode_clips(task["clips"], decode, audio_config):
            if isinstance(result, ClipError):
                refused[key] = {"kind": result.kind, "reason": str(result)}
            else:
                rows.append(result)
    order = {entry["key"]: number for number, entry in enumerate(task["clips"])}
    rows.sort(key=lambda row: order[row["recording"]])
    lasting = {key: outcome for key, outcome in refused.items() if outcome["kind"] not in TRANSIENT_KINDS}
    try:
        name = _write_shard_file(task, rows, lasting, folder, audio_config)
    except LakdError as error:
        return {"outcomes": "{}", "error": str(error)}
    return {"outcomes": json.dumps(refused | _locate_rows(rows, name, audio_config)), "error": ""}


def _decode_clips(
    entries: list[dict[str, Any]], decode: Callable[..., dict[str, Any]], audio_config: AudioConfig
) -> Iterator[tuple[str, dict[str, Any] | ClipError]]:
    """Each clip's key with its shard row or its refusal. Parts of one recording follow each other: it is read once."""
    last, content = "", b""
    for entry in sorted(entries, key=lambda entry: recordings.read_order_key(entry["clip"]["source"])):
        clip = Clip(**entry["clip"])
        try:
            if clip.source != last:
                last, content = "", recordings.read_clip_source(clip.source)
                last = clip.source
            row = decode(content, source_name=clip.source, start=clip.start, end=clip.end, audio_config=audio_config)
        except ClipError as error:
            yield entry["key"], error
            continue
        yield entry["key"], {"utterance": f"{entry['corpus']}/{clip.id}", "recording": entry["key"], **row}


def _write_shard_file(
    task: dict[str, Any], rows: list[dict[str, Any]], rejected: dict[str, ClipResult], folder: str, audio: AudioConfig
) -> str:
    """Write a shard unless there is nothing to remember; returns its name."""
    if not rows and not rejected:
        return ""
    table = pa.Table.from_pylist(rows, schema=SHARD_SCHEMA.with_metadata({_REJECTED_KEY: json.dumps(rejected)}))
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        row_group_size=audio.row_group_utterances,
        compression={name: "none" if name == "audio" else "zstd" for name in SHARD_SCHEMA.names},  # FLAC is compressed
        use_dictionary=False,
        write_statistics=[name for name in SHARD_SCHEMA.names if name != "audio"],
    )
    content = buffer.getvalue().to_pybytes()
    name = f"{task['name']}-{_content_hash(content)}.parquet"
    storage.write_bytes(storage.join(folder, name), content)
    return name
