"""Folders as Hugging Face `datasets` leave them, without that library: the importer `huggingface`.

Three layouts: an AudioFolder (recordings, and `metadata.csv` or `.jsonl` with a column `file_name`), Parquet exports,
and what `save_to_disk` writes (Arrow streams beside a `state.json`). In tables the recordings are a column of
`{bytes, path}`, and numbers that stand for classes are explained in the schema's metadata.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lakd_ray import storage
from lakd_ray.corpora import recordings, rows, table
from lakd_ray.corpora.clip import Clip, Item, Problem, canonical_split
from lakd_ray.corpora.rows import OPTIONAL, SECONDS, Columns
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import SPLITS

OURS = ("emotion", "language", "speaker", *OPTIONAL)
# Data sets have such columns with other meanings: ids that begin anew in each split, where a cut clip came from.
ON_REQUEST = ("id", *SECONDS)
METADATA = ("metadata.csv", "metadata.jsonl")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True)
class _Part:
    """One table of a data set."""

    file: str
    split: str | None


def read(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read a data set's folder.

    Raises:
        ConfigError: an option has the wrong form.
        DataError: there is no such layout below `root`, or its tables lack a column.
    """
    columns = Columns.of("huggingface", options, known=OURS, on_request=ON_REQUEST)
    audio = options.get("audio")
    if not isinstance(audio, str | None):
        raise ConfigError(f"option `audio` of importer `huggingface` is {audio!r}; expected the name of a column.")
    files = recordings.files(root)
    if parts := _saved(root, files) or _exported(files):
        yield from _missing(root, files)
        for part in parts:
            yield from _table(root, part, columns, audio)
    elif found := [file for file in files if file.rpartition("/")[2] in METADATA]:
        yield from _audiofolder(root, files, found, columns, f"{audio}_file_name" if audio else "file_name")
    else:
        raise DataError(
            f"{root}: found {len(files)} files, but neither *.parquet, nor state.json with Arrow files, nor "
            "metadata.csv or metadata.jsonl. Expected what `datasets` wrote or a clone of a data set: check the "
            "corpus's `root`. Recordings in folders without metadata are read by importer `audiofolder`."
        )


def _saved(root: str, files: list[str]) -> list[_Part]:
    """The tables of `save_to_disk`: one folder, or one for each split."""
    parts = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if name != "state.json":
            continue
        state = storage.read_json(storage.join(root, file))
        if not isinstance(state, dict) or "_data_files" not in state:
            continue
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                f"{storage.join(root, file)} keeps a selection of rows apart from the rows, as old versions of "
                "`datasets` did. Load the data set and save it again with a current one."
            )
        above, _, last = folder.rpartition("/")
        split = last if f"{above}/dataset_dict.json".lstrip("/") in files else state.get("_split")
        given = canonical_split(split) if split else None
        parts += [_Part(f"{folder}/{entry['filename']}".lstrip("/"), given) for entry in state["_data_files"]]
    return parts


def _exported(files: list[str]) -> list[_Part]:
    """Parquet files: `train-00000-of-00001.parquet`, `train/0000.parquet` or `train.parquet`."""
    parts = []
    for file in (file for file in files if file.endswith(".parquet")):
        folder, _, name = file.rpartition("/")
        shard = _SHARD.fullmatch(name)
        stem = shard["stem"] if shard else name.removesuffix(".parquet")
        if stem.isdecimal():
            stem = folder.rpartition("/")[2]
        split = canonical_split(stem)
        parts.append(_Part(file, split if shard or split in SPLITS else None))
    return parts


def _missing(root: str, files: list[str]) -> Iterator[Problem]:
    """Shards that the names of others promise."""
    promised: dict[tuple[str, int], set[int]] = defaultdict(set)
    for file in files:
        if shard := _SHARD.fullmatch(file):
            promised[shard["stem"], int(shard["count"])].add(int(shard["number"]))
    for (stem, count), there in promised.items():
        for number in sorted(set(range(count)) - there):
            name = f"{stem}-{number:05}-of-{count:05}.parquet"
            reason = f"is missing; there are {len(there)} of {count}"
            yield Problem(id=name, source=storage.join(root, name), reason=reason, kind="missing")


def _table(root: str, part: _Part, columns: Columns, audio: str | None) -> Iterator[Item]:
    """The rows of one Parquet or Arrow file."""
    location = storage.join(root, part.file)
    found, features, load = _open(location)
    audio = audio or _audio_column(location, features)
    if audio not in found:
        raise DataError(
            f"{location} lacks column {audio}; found {', '.join(found)}. Name the recordings' column with the option "
            "`audio`."
        )
    columns.check(location, found)
    content = load([theirs for theirs in dict.fromkeys(columns.names.values()) if theirs in found])
    classes = {name: feature["names"] for name, feature in features.items() if _is_class(feature)}
    for number, cells in enumerate(content.to_pylist()):
        for name, names in classes.items():
            if isinstance(code := cells.get(name), int):
                cells[name] = names[code] if 0 <= code < len(names) else None
        if part.split is not None and cells.get(columns.names["split"]) is None:
            cells[columns.names["split"]] = part.split
        path = recordings.embedded(part.file, number, audio)
        item = rows.clip(columns, rows.Row(cells, path, recordings.embedded(location, number, audio), root, path))
        yield replace(item, split=canonical_split(item.split)) if isinstance(item, Clip) and item.split else item


def _open(location: str) -> tuple[list[str], dict[str, Any], Any]:
    """Column names of a table, its features as `datasets` describe them, and what loads some of its columns."""
    filesystem, path = storage.resolve(location)
    try:
        if location.endswith(".parquet"):
            file = pq.ParquetFile(filesystem.open_input_file(path))
            schema, load = file.schema_arrow, file.read
        else:
            opened = filesystem.open_input_file(path) if storage.is_remote(location) else pa.memory_map(path)
            arrow = pa.ipc.open_stream(opened).read_all()
            schema, load = arrow.schema, arrow.select
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {location}: {error}. Take it from its source again.") from None
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return list(schema.names), described.get("info", {}).get("features", {}), load


def _is_class(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _audio_column(location: str, features: Mapping[str, Any]) -> str:
    found = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Audio"
    ]
    if len(found) > 1:
        raise DataError(f"{location} has recordings in {' and '.join(found)}; choose with the option `audio`.")
    return found[0] if found else recordings.AUDIO_COLUMN


def _audiofolder(root: str, files: list[str], found: list[str], columns: Columns, path: str) -> Iterator[Item]:
    """Recordings named by metadata files, each beside or above them."""
    columns = replace(columns, names={"path": path, **columns.names})
    named: set[str] = set()
    for metadata in found:
        above = metadata[: metadata.rfind("/") + 1]
        for item in table.clips(storage.join(root, metadata), columns):
            named.add(item.source if isinstance(item, Clip) else "")
            yield _placed(item, root, above) if isinstance(item, Clip) else item
    for file in files:
        source = storage.join(root, file)
        if recordings.is_audio(file) and source not in named:
            yield Problem(id=file, source=source, reason=f"has no row in {' or '.join(METADATA)}")


def _placed(clip: Clip, root: str, above: str) -> Clip:
    """A clip under a name that is unique in the whole folder, in the split that a folder's name tells."""
    folders = clip.source.removeprefix(root).strip("/").split("/")[:-1]
    told = [canonical_split(folder) for folder in folders if canonical_split(folder) in SPLITS]
    split = canonical_split(clip.split) if clip.split else next(iter(told), None)
    return replace(clip, id=above + clip.id, split=split)
