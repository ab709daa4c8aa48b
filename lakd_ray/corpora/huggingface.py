"""Read datasets in the layouts of Hugging Face `datasets`, without that library (importer `huggingface`).

There are three layouts: AudioFolder (recordings, and `metadata.csv` or `.jsonl` with a column `file_name`), Parquet
exports, and the output of `save_to_disk` (Arrow streams next to a `state.json`). In tables the recordings are a column
of `{bytes, path}`, and the names of class labels are in the schema's metadata.
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
# Datasets use columns with these names for other purposes: ids that restart in each split, the origin of a cut clip.
OPT_IN_COLUMNS = ("id", *TIME_COLUMNS)
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")


@dataclass(frozen=True)
class _TableFile:
    """One Parquet or Arrow file of a dataset and its split."""

    file: str
    split: str | None


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every row of the dataset in a folder, and every recording without a row.

    Raises:
        ConfigError: an option has an invalid type.
        DataError: the folder has none of the three layouts, or a table lacks a column.
    """
    columns = ColumnMap.from_options("huggingface", options, allowed=KNOWN_COLUMNS, opt_in=OPT_IN_COLUMNS)
    audio = options.get("audio")
    if not isinstance(audio, str | None):
        raise ConfigError(f"option `audio` of importer `huggingface` is {audio!r}; expected the name of a column.")
    files = sources.list_files(root)
    if tables := _find_saved_tables(root, files) or _find_parquet_tables(files):
        yield from _iter_missing_shards(root, files)
        for table in tables:
            yield from _iter_table(root, table, columns, audio)
    elif metadata_files := [file for file in files if file.rpartition("/")[2] in METADATA_NAMES]:
        path_column = f"{audio}_file_name" if audio else "file_name"
        yield from _iter_audiofolder(root, files, metadata_files, columns, path_column)
    else:
        raise DataError(
            f"{root}: found {len(files)} files, but neither *.parquet, nor state.json with Arrow files, nor "
            "metadata.csv or metadata.jsonl. Expected a dataset saved by `datasets` or cloned from the Hub: check the "
            "corpus's `root`. Use importer `audiofolder` for recordings in folders without metadata."
        )


def _find_saved_tables(root: str, files: list[str]) -> list[_TableFile]:
    """Return the tables that `save_to_disk` wrote: one folder, or one per split."""
    tables = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if name != "state.json":
            continue
        state = storage.read_json(storage.join(root, file))
        if not isinstance(state, dict) or "_data_files" not in state:
            continue
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                f"{storage.join(root, file)} stores a selection of rows in separate index files, as old versions of "
                "`datasets` did. Load the dataset and save it again with a current version."
            )
        parent, _, folder_name = folder.rpartition("/")
        split = folder_name if f"{parent}/dataset_dict.json".lstrip("/") in files else state.get("_split")
        split = normalize_split(split) if split else None
        for entry in state["_data_files"]:
            location = storage.confine(storage.join(root, folder), entry["filename"], allow_links=True)
            tables.append(_TableFile(location.removeprefix(root.rstrip("/")).lstrip("/"), split))
    return tables


def _find_parquet_tables(files: list[str]) -> list[_TableFile]:
    """Return the Parquet files: `train-00000-of-00001.parquet`, `train/0000.parquet` or `train.parquet`."""
    tables = []
    for file in (file for file in files if file.endswith(".parquet")):
        folder, _, name = file.rpartition("/")
        shard = _SHARD_NAME.fullmatch(name)
        stem = shard["stem"] if shard else name.removesuffix(".parquet")
        if stem.isdecimal():
            stem = folder.rpartition("/")[2]
        split = normalize_split(stem)
        tables.append(_TableFile(file, split if shard or split in SPLITS else None))
    return tables


def _iter_missing_shards(root: str, files: list[str]) -> Iterator[InvalidItem]:
    """Yield the missing shards; the names of the others contain the number of shards."""
    existing: dict[tuple[str, int], set[int]] = defaultdict(set)
    for file in files:
        if shard := _SHARD_NAME.fullmatch(file):
            existing[shard["stem"], int(shard["count"])].add(int(shard["number"]))
    for (stem, count), numbers in existing.items():
        for number in sorted(set(range(count)) - numbers):
            name = f"{stem}-{number:05}-of-{count:05}.parquet"
            reason = f"is missing; found {len(numbers)} of {count} shards"
            yield InvalidItem(id=name, source=storage.join(root, name), reason=reason, kind="missing")


def _iter_table(root: str, table_file: _TableFile, columns: ColumnMap, audio_column: str | None) -> Iterator[Item]:
    """Yield the rows of one Parquet or Arrow file as clips."""
    location = storage.join(root, table_file.file)
    available, features, load = _open_table(location)
    audio_column = audio_column or _find_audio_column(location, features)
    if audio_column not in available:
        raise DataError(
            f"{location} lacks column {audio_column}; found {', '.join(available)}. Set the option `audio` to the "
            "column of the recordings."
        )
    columns.check_available(location, available)
    content = load([theirs for theirs in dict.fromkeys(columns.source_columns.values()) if theirs in available])
    class_names = {name: feature["names"] for name, feature in features.items() if _is_class_label(feature)}
    for number, cells in enumerate(content.to_pylist()):
        for column, names in class_names.items():
            if isinstance(code := cells.get(column), int):
                cells[column] = names[code] if 0 <= code < len(names) else None
        if table_file.split is not None and cells.get(columns.source_columns["split"]) is None:
            cells[columns.source_columns["split"]] = table_file.split
        path = sources.make_row_source(table_file.file, number, audio_column)
        row_location = sources.make_row_source(location, number, audio_column)
        item = manifest_rows.make_clip(columns, manifest_rows.ManifestRow(cells, path, row_location, root, path=path))
        yield replace(item, split=normalize_split(item.split)) if isinstance(item, Clip) and item.split else item


def _open_table(location: str) -> tuple[list[str], dict[str, Any], Any]:
    """Return the column names of a table, its features in the form of `datasets`, and a function to load columns."""
    filesystem, path = storage.resolve_filesystem(location)
    try:
        if location.endswith(".parquet"):
            file = pq.ParquetFile(filesystem.open_input_file(path))
            schema, load = file.schema_arrow, file.read
        else:
            stream = filesystem.open_input_file(path) if storage.is_remote(location) else pa.memory_map(path)
            table = pa.ipc.open_stream(stream).read_all()
            schema, load = table.schema, table.select
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {location}: {error}. Restore the original file.") from None
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return list(schema.names), metadata.get("info", {}).get("features", {}), load


def _is_class_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _find_audio_column(location: str, features: Mapping[str, Any]) -> str:
    audio_columns = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Audio"
    ]
    if len(audio_columns) > 1:
        raise DataError(f"{location} has recordings in {' and '.join(audio_columns)}; choose with the option `audio`.")
    return audio_columns[0] if audio_columns else sources.DEFAULT_AUDIO_COLUMN


def _iter_audiofolder(
    root: str, files: list[str], metadata_files: list[str], columns: ColumnMap, path_column: str
) -> Iterator[Item]:
    """Yield the rows of all metadata files, whose paths are relative to them, and the recordings without a row."""
    columns = replace(columns, source_columns={"path": path_column, **columns.source_columns})
    listed: set[str] = set()
    for metadata in metadata_files:
        folder = metadata[: metadata.rfind("/") + 1]
        for item in csv_manifest.iter_clips(storage.join(root, metadata), columns, root=root):
            listed.add(item.source if isinstance(item, Clip) else "")
            yield _with_unique_id(item, root, folder) if isinstance(item, Clip) else item
    for file in files:
        source = storage.join(root, file)
        if sources.has_audio_suffix(file) and source not in listed:
            yield InvalidItem(id=file, source=source, reason=f"has no row in {' or '.join(METADATA_NAMES)}")


def _with_unique_id(clip: Clip, root: str, id_prefix: str) -> Clip:
    """Return the clip with an id that is unique below `root`, and the split of its row or of a folder of its path."""
    folders = clip.source.removeprefix(root).strip("/").split("/")[:-1]
    folder_splits = [normalize_split(folder) for folder in folders if normalize_split(folder) in SPLITS]
    split = normalize_split(clip.split) if clip.split else next(iter(folder_splits), None)
    return replace(clip, id=id_prefix + clip.id, split=split)
