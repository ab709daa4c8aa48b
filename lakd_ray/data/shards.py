"""Write shards, which are Parquet files of FLAC audio, with Ray Data tasks.

A shard is named by the SHA-256 of its bytes (`<corpus>-<language>-<first 16 digits>.parquet`): files are never
overwritten, and corruption is detectable (`find_corrupt_shards`). A shard has the result of every clip of its task:
accepted clips are rows, rejected clips are listed in the file's metadata. So the shards are also the index of the stage
(`load_clip_index`): after an interruption or a change of the corpus, a clip whose key (`lakd_ray.data.corpus_snapshot`)
is in the index is not decoded again.
"""

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.util.annotations import RayDeprecationWarning

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.audio.sandbox import SandboxPool
from lakd_ray.config import AudioConfig, to_dict
from lakd_ray.corpora.items import Clip
from lakd_ray.data.quality import decode_and_validate
from lakd_ray.data.reader import configure_data_context
from lakd_ray.data.schema import SHARD_SCHEMA, TRANSIENT_KINDS
from lakd_ray.errors import ClipError, DataError, StorageError
from lakd_ray.progress import progress_bar

logger = logging.getLogger(__name__)

# The result of preparing a clip: its location in a shard, or the kind and reason of its rejection.
ClipResult = dict[str, Any]
# The clips of a shard to write: name, clips [{key, corpus, clip}].
ShardTask = dict[str, Any]
_REJECTED_KEY = b"lakd.refused"
_MAX_TASK_RETRIES = 2  # retries of a task whose process died; then its clips are decoded in a sandbox
_NUM_READER_THREADS = 16
_PROGRESS_CLIPS = 8  # a task reports its progress each time it has decoded this many clips


def load_clip_index(folder: str, audio: AudioConfig) -> dict[str, ClipResult]:
    """Return the result of every clip in the shards of a folder, by key; corrupted shards are logged and skipped."""
    names = [info.name for info in storage.list_files(folder)]
    known: dict[str, ClipResult] = {}
    with ThreadPoolExecutor(_NUM_READER_THREADS) as pool:
        for results in pool.map(partial(_read_shard_index, folder=folder, audio=audio), sorted(names)):
            known |= results
    return known


def _read_shard_index(name: str, folder: str, audio: AudioConfig) -> dict[str, ClipResult]:
    columns = ["recording", "num_samples", "cut", "audio_sha256"]
    try:
        table = storage.read_table(storage.join(folder, name), columns=columns)
    except StorageError as error:
        logger.warning(f"prepare: cannot read shard {name}; its clips are decoded again ({error})")
        return {}
    accepted = _locate_rows(table.to_pylist(), name, audio)
    rejected: dict[str, ClipResult] = json.loads((table.schema.metadata or {}).get(_REJECTED_KEY, b"{}"))
    return accepted | rejected


def _locate_rows(rows: list[dict[str, Any]], name: str, audio: AudioConfig) -> dict[str, ClipResult]:
    results = {}
    for number, row in enumerate(rows):
        row_group, row_in_group = divmod(number, audio.row_group_utterances)
        columns = {column: row[column] for column in ("num_samples", "cut", "audio_sha256")}
        results[row["recording"]] = {**columns, "shard": name, "row_group": row_group, "row": row_in_group}
    return results


def find_corrupt_shards(folder: str) -> list[str]:
    """Return the names of shards whose content does not match the hash in their name; reads all shards."""
    files = [info.name for info in storage.list_files(folder)]
    return [name for name in files if _content_hash(storage.read_bytes(storage.join(folder, name))) not in name]


def _content_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_shards(
    corpus: str, clips: Iterable[tuple[str, Clip]], folder: str, audio: AudioConfig
) -> dict[str, ClipResult]:
    """Decode and encode (key, clip) pairs into shards; return the result of every clip by key.

    A recording can kill the process that decodes it, because libsndfile is C code. Ray would retry such a task
    indefinitely; here it is retried a few times, and then its clips are decoded in a sandbox process.

    Raises:
        StorageError: a shard cannot be written.
        DataError: a task died even with the sandbox.
    """
    tasks = list(_plan_tasks(corpus, clips, audio))
    results: dict[str, ClipResult] = {}
    num_decoded: Counter[str] = Counter()  # by task; a restarted task reports the same clips again
    with progress_bar(sum(len(task["clips"]) for task in tasks), f"prepare {corpus}", unit="clip") as bar:
        for isolated in (False, True):
            pending = [task for task in tasks if _task_key(task) not in results]
            if isolated and pending:
                logger.warning(f"prepare: {len(pending)} tasks died while decoding; decoding their clips in a sandbox")
            for row in _run_tasks(pending, folder, audio, isolated=isolated):
                results |= json.loads(row["results"])
                bar.update(max(0, row["num_decoded"] - num_decoded[row["task"]]))
                num_decoded[row["task"]] = max(row["num_decoded"], num_decoded[row["task"]])
    lost = [task for task in tasks if _task_key(task) not in results]
    if lost:
        first_clips = ", ".join(entry["clip"]["source"] for entry in lost[0]["clips"][:3])
        raise DataError(
            f"{corpus}: {len(lost)} tasks died repeatedly; the first contains {first_clips} ...: see Ray's logs"
        )
    return results


def _task_key(task: ShardTask) -> str:
    key: str = task["clips"][0]["key"]
    return key


def _plan_tasks(corpus: str, clips: Iterable[tuple[str, Clip]], audio: AudioConfig) -> Iterator[ShardTask]:
    """Yield tasks, each with clips of one language, in a fixed pseudo-random order."""
    keyed = list(clips)
    entries: list[dict[str, Any]]
    for language in sorted({clip.language for _, clip in keyed}):
        entries = sorted(
            ({"key": key, "corpus": corpus, "clip": vars(clip)} for key, clip in keyed if clip.language == language),
            key=lambda entry: hashlib.sha256(f"{corpus}/{entry['clip']['id']}".encode()).digest(),
        )
        for start in range(0, len(entries), audio.shard_utterances):
            yield {"name": f"{corpus}-{language}", "clips": entries[start : start + audio.shard_utterances]}


def _run_tasks(tasks: list[ShardTask], folder: str, audio: AudioConfig, *, isolated: bool) -> Iterator[dict[str, Any]]:
    """Run tasks and yield the rows of `_write_shard` as they arrive; a task whose process dies has no last row."""
    if not tasks:
        return
    with _streaming_rows(max_errored_blocks=0 if isolated else -1):
        source = ray.data.from_items([json.dumps(task) for task in tasks], override_num_blocks=len(tasks))
        write = partial(_write_shard, folder=folder, audio=to_dict(audio), isolated=isolated)
        write_shard = partial(_write_fenced_shard, write=write, fences=storage.current_fences())
        with warnings.catch_warnings():
            # Ray 2.60 deprecates this argument, but has no other way to limit the retries.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            rows = source.flat_map(write_shard, num_cpus=1, max_retries=_MAX_TASK_RETRIES)
        for row in rows.iter_rows():
            if row["error"]:
                raise StorageError(row["error"])
            yield row


@contextmanager
def _streaming_rows(max_errored_blocks: int) -> Iterator[None]:
    """Configure Ray Data so that each row arrives when a task yields it, not when the task ends."""
    context = configure_data_context()
    options = context.execution_options
    previous = context.max_errored_blocks, context.target_max_block_size
    context.max_errored_blocks, context.target_max_block_size = max_errored_blocks, 1  # every row is a block
    options.preserve_order = False
    try:
        yield
    finally:
        context.max_errored_blocks, context.target_max_block_size = previous
        options.preserve_order = True


def _write_fenced_shard(
    item: dict[str, Any], write: Callable[[dict[str, Any]], Iterator[dict[str, Any]]], fences: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Write a shard with the driver's right to write (runs in a Ray Data task)."""
    storage.join_fences(fences)
    yield from write(item)


def _write_shard(item: dict[str, Any], folder: str, audio: dict[str, Any], isolated: bool) -> Iterator[dict[str, Any]]:
    """Decode, encode and write one shard (runs in a Ray Data task).

    Yields:
        Rows {task, num_decoded, results, error}: the number of clips decoded so far, and in the last row the results
        of all clips as JSON, or an error message.
    """
    task = json.loads(item["item"])
    progress = {"task": _task_key(task), "num_decoded": 0, "results": "{}", "error": ""}
    try:
        with storage.explain_full_disk():
            yield from _decode_and_write(task, progress, folder, AudioConfig.model_validate(audio), isolated=isolated)
    except StorageError as error:
        yield progress | {"error": str(error)}


def _decode_and_write(
    task: ShardTask, progress: dict[str, Any], folder: str, audio_config: AudioConfig, *, isolated: bool
) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    rejected: dict[str, ClipResult] = {}
    with SandboxPool() if isolated else nullcontext() as sandbox:
        decode = decode_and_validate if sandbox is None else partial(sandbox.call, decode_and_validate)
        for count, (key, result) in enumerate(_decode_clips(task["clips"], decode, audio_config), start=1):
            if isinstance(result, ClipError):
                rejected[key] = {"kind": result.kind, "reason": str(result)}
            else:
                rows.append(result)
            if count % _PROGRESS_CLIPS == 0:
                yield progress | {"num_decoded": count}
    order = {entry["key"]: number for number, entry in enumerate(task["clips"])}
    rows.sort(key=lambda row: order[row["recording"]])
    permanent = {key: result for key, result in rejected.items() if result["kind"] not in TRANSIENT_KINDS}
    name = _write_shard_file(task, rows, permanent, folder, audio_config)
    results = rejected | _locate_rows(rows, name, audio_config)
    yield progress | {"num_decoded": len(results), "results": json.dumps(results)}


def _decode_clips(
    entries: list[dict[str, Any]], decode: Callable[..., dict[str, Any]], audio_config: AudioConfig
) -> Iterator[tuple[str, dict[str, Any] | ClipError]]:
    """Yield each clip's key with its shard row or an error; parts of one recording are adjacent, so it is read once."""
    loaded, content = "", b""
    for entry in sorted(entries, key=lambda entry: sources.read_order_key(entry["clip"]["source"])):
        clip = Clip(**entry["clip"])
        try:
            if clip.source != loaded:
                loaded, content = "", sources.read_clip_source(clip.source)
                loaded = clip.source
            row = decode(content, source_name=clip.source, start=clip.start, end=clip.end, audio_config=audio_config)
        except ClipError as error:
            yield entry["key"], error
            continue
        yield entry["key"], {"utterance": f"{entry['corpus']}/{clip.id}", "recording": entry["key"], **row}


def _write_shard_file(
    task: dict[str, Any], rows: list[dict[str, Any]], rejected: dict[str, ClipResult], folder: str, audio: AudioConfig
) -> str:
    """Write a shard and return its name; an empty name if there are neither rows nor permanent rejections."""
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
