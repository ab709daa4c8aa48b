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
from lakd_ray.audio import sources
from lakd_ray.corpora import csv_manifest, manifest_rows
from lakd_ray.corpora.items import Clip, InvalidItem, Item, normalize_split
from lakd_ray.corpora.manifest_rows import OPTIONAL_COLUMNS, TIME_COLUMNS, ColumnMap
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import SPLITS

KNOWN_COLUMNS = ("emotion", "language", "speaker", *OPTIONAL_COLUMNS)
# Data sets have such columns with other meanings: ids that begin anew in each split, where a cut clip came from.
OPT_IN_COLUMNS = ("id", *TIME_COLUMNS)
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True)
class _TableFile:
    """One table of a data set."""

    file: str
    split: str | None


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read a data set's folder.

    Raises:
        ConfigError: an option has the wrong form.
        DataError: there is no such layout below `root`, or its tables lack a column.
    """
    columns = ColumnMap.from_options("huggingface", options, allowed=KNOWN_COLUMNS, opt_in=OPT_IN_COLUMNS)
    audio = options.get("audio")
    if not isinstance(audio, str | None):
        raise ConfigError(f"option `audio` of importer `huggingface` is {audio!r}; expected the name of a column.")
    files = sources.list_files(root)
    if parts := _find_saved_tables(root, files) or _find_parquet_tables(files):
        yield from _iter_missing_shards(root, files)
        for part in parts:
            yield from _iter_table(root, part, columns, audio)
    elif found := [file for file in files if file.rpartition("/")[2] in METADATA_NAMES]:
        yield from _iter_audiofolder(root, files, found, columns, f"{audio}_file_name" if audio else "file_name")
    else:
        raise DataError(
            f"{root}: found {len(files)} files, but neither *.parquet, nor state.json with Arrow files, nor "
            "metadata.csv or metadata.jsonl. Expected what `datasets` wrote or a clone of a data set: check the "
            "corpus's `root`. Recordings in folders without metadata are read by importer `audiofolder`."
        )


def _find_saved_tables(root: str, files: list[str]) -> list[_TableFile]:
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
        given = normalize_split(split) if split else None
        parts += [_TableFile(f"{folder}/{entry['filename']}".lstrip("/"), given) for entry in state["_data_files"]]
    return parts


def _find_parquet_tables(files: list[str]) -> list[_TableFile]:
    """Parquet files: `train-00000-of-00001.parquet`, `train/0000.parquet` or `train.parquet`."""
    parts = []
    for file in (file for file in files if file.endswith(".parquet")):
        folder, _, name = file.rpartition("/")
        shard = _SHARD_NAME.fullmatch(name)
        stem = shard["stem"] if shard else name.removesuffix(".parquet")
        if stem.isdecimal():
            stem = folder.rpartition("/")[2]
        split = normalize_split(stem)
        parts.append(_TableFile(file, split if shard or split in SPLITS else None))
    return parts


def _iter_missing_shards(root: str, files: list[str]) -> Iterator[InvalidItem]:
    """Shards that the names of others promise."""
    promised: dict[tuple[str, int], set[int]] = defaultdict(set)
    for file in files:
        if shard := _SHARD_NAME.fullmatch(file):
            promised[shard["stem"], int(shard["count"])].add(int(shard["number"]))
    for (stem, count), there in promised.items():
        for number in sorted(set(range(count)) - there):
            name = f"{stem}-{number:05}-of-{count:05}.parquet"
            reason = f"is missing; there are {len(there)} of {count}"
            yield InvalidItem(id=name, source=storage.join(root, name), reason=reason, kind="missing")


def _iter_table(root: str, table_file: _TableFile, columns: ColumnMap, audio_column: str | None) -> Iterator[Item]:
    """The rows of one Parquet or Arrow file."""
    location = storage.join(root, table_file.file)
    found, features, load = _open_table(location)
    audio_column = audio_column or _find_audio_column(location, features)
    if audio_column not in found:
        raise DataError(
            f"{location} lacks column {audio_column}; found {', '.join(found)}. Name the recordings' column with the option "
            "`audio`."
        )
    columns.check_available(location, found)
    content = load([theirs for theirs in dict.fromkeys(columns.source_columns.values()) if theirs in found])
    classes = {name: feature["names"] for name, feature in features.items() if _is_class_label(feature)}
    for number, cells in enumerate(content.to_pylist()):
        for name, names in classes.items():
            if isinstance(code := cells.get(name), int):
                cells[name] = names[code] if 0 <= code < len(names) else None
        if table_file.split is not None and cells.get(columns.source_columns["split"]) is None:
            cells[columns.source_columns["split"]] = table_file.split
        path = sources.make_row_source(table_file.file, number, audio_column)
        item = manifest_rows.make_clip(
            columns,
            manifest_rows.ManifestRow(cells, path, sources.make_row_source(location, number, audio_column), root, path),
        )
        yield replace(item, split=normalize_split(item.split)) if isinstance(item, Clip) and item.split else item


def _open_table(location: str) -> tuple[list[str], dict[str, Any], Any]:
    """Column names of a table, its features as `datasets` describe them, and what loads some of its columns."""
    filesystem, path = storage.resolve_filesystem(location)
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


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _find_audio_column(location: str, features: Mapping[str, Any]) -> str:
    found = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Audio"
    ]
    if len(found) > 1:
        raise DataError(f"{location} has recordings in {' and '.join(found)}; choose with the option `audio`.")
    return found[0] if found else sources.DEFAULT_AUDIO_COLUMN


def _iter_audiofolder(
    root: str, files: list[str], metadata_files: list[str], columns: ColumnMap, path_column: str
) -> Iterator[Item]:
    """Recordings named by metadata files, each beside or above them."""
    columns = replace(columns, source_columns={"path": path_column, **columns.source_columns})
    named: set[str] = set()
    for metadata in metadata_files:
        above = metadata[: metadata.rfind("/") + 1]
        for item in csv_manifest.iter_clips(storage.join(root, metadata), columns):
            named.add(item.source if isinstance(item, Clip) else "")
            yield _with_unique_id(item, root, above) if isinstance(item, Clip) else item
    for file in files:
        source = storage.join(root, file)
        if sources.has_audio_suffix(file) and source not in named:
            yield InvalidItem(id=file, source=source, reason=f"has no row in {' or '.join(METADATA_NAMES)}")


def _with_unique_id(clip: Clip, root: str, id_prefix: str) -> Clip:
    """A clip under a name that is unique in the whole folder, in the split that a folder's name tells."""
    folders = clip.source.removeprefix(root).strip("/").split("/")[:-1]
    told = [normalize_split(folder) for folder in folders if normalize_split(folder) in SPLITS]
    split = normalize_split(clip.split) if clip.split else next(iter(told), None)
    return replace(clip, id=id_prefix + clip.id, split=split)
