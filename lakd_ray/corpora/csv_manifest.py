"""Read any corpus that is described by a CSV or JSONL manifest (importer `csv`).

Required columns are path, emotion, language and speaker; optional ones sentence, session, split, id, start and end.
Relative paths start at the manifest's folder. Local recordings are checked for existence; in a bucket each check would
be a request, so missing recordings are detected when they are decoded.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora import manifest_rows
from lakd_ray.corpora.items import Clip, InvalidItem, Item
from lakd_ray.corpora.manifest_rows import REQUIRED_COLUMNS, ColumnMap, RowCells
from lakd_ray.errors import DataError

MANIFEST_NAMES = ("manifest.csv", "manifest.jsonl")

# Line number, and the cells of the row or the reason why the line is invalid.
ManifestLine = tuple[int, RowCells | str]


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield every row of a manifest, or of the `manifest.csv` or `manifest.jsonl` of a folder.

    Raises:
        ConfigError: an option has an invalid type.
        DataError: there is no manifest, or it cannot be read, see `iter_clips`.
    """
    manifest = _find_manifest(root)
    columns = ColumnMap.from_options("csv", options)
    yield from iter_clips(manifest, columns, root=None if manifest == root else root)


def iter_clips(location: str, columns: ColumnMap, *, root: str | None) -> Iterator[Clip | InvalidItem]:
    """Yield the rows of one CSV or JSONL file as clips; relative paths start at its folder.

    Args:
        location: the file.
        columns: names of its columns.
        root: folder in which all recordings must be; None: the file may name recordings anywhere.

    Raises:
        DataError: the file cannot be read, lacks a column, has no rows, or has an id twice.
    """
    lines, column_names = read_lines(location)
    columns.check_available(location, column_names)
    if not lines:
        raise DataError(
            f"{location} has columns {', '.join(column_names)} but no rows; expected one row per recording."
        )
    folder = location[: location.rfind("/") + 1] or "."
    line_by_id: dict[str, int] = {}
    for number, cells in lines:
        line_location, fallback_id = f"{location} line {number}", f"line-{number}"
        if isinstance(cells, str):
            yield InvalidItem(id=fallback_id, source=line_location, reason=cells)
            continue
        item = manifest_rows.make_clip(
            columns, manifest_rows.ManifestRow(cells, fallback_id, line_location, folder, root=root)
        )
        if isinstance(item, Clip):
            if item.id in line_by_id:
                raise DataError(
                    f"{location}: id {item.id!r} is in line {line_by_id[item.id]} and again in line {number}; expected "
                    "unique ids. Delete one row, or add a column `id` (without it the path is the id)."
                )
            line_by_id[item.id] = number
        yield item


def read_lines(location: str) -> tuple[list[ManifestLine], list[str]]:
    """Return the rows of a CSV or JSONL file and the names of its columns.

    Raises:
        DataError: the file cannot be read.
    """
    text = _read_text(location)
    return _parse_jsonl(text) if location.endswith(".jsonl") else _parse_csv(text, location)


def _find_manifest(root: str) -> str:
    if root.endswith((".csv", ".jsonl")):
        if not storage.exists(root):
            raise DataError(f"there is no manifest {root}; check the corpus's `root`.")
        return root
    manifests = [name for name in MANIFEST_NAMES if storage.exists(storage.join(root, name))]
    if len(manifests) != 1:
        if not storage.exists(root):
            raise DataError(f"there is no such folder: {root}; check the corpus's `root`.")
        found = f"both {' and '.join(MANIFEST_NAMES)}" if manifests else f"neither {' nor '.join(MANIFEST_NAMES)}"
        raise DataError(f"{root} contains {found}; expected one. Set the corpus's `root` to the manifest file.")
    return storage.join(root, manifests[0])


def _read_text(location: str) -> str:
    content = storage.read_bytes(location)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{location} is not UTF-8: byte {content[error.start]:#04x} in line {line}. Save it as UTF-8 "
            "(in a spreadsheet: `CSV UTF-8`)."
        ) from None
    if not text.strip():
        raise DataError(
            f"{location} is empty; expected a row of column names ({', '.join(REQUIRED_COLUMNS)}) and one row per "
            "recording."
        )
    return text


def _parse_csv(text: str, location: str) -> tuple[list[ManifestLine], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # else an open quote includes the rest of the file
    lines: list[ManifestLine] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                lines.append((reader.line_num, f"has {len(cells)} cells, expected {len(header)}"))
            else:
                lines.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{location} is damaged in line {reader.line_num}: {error}. Correct its quotes.") from None
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{location} has more than one column {', '.join(repeated)}; expected unique column names.")
    return lines, header


def _parse_jsonl(text: str) -> tuple[list[ManifestLine], list[str]]:
    lines: list[ManifestLine] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also splits at U+2028, valid inside JSON
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            lines.append((number, f"is not JSON: {error}"))
            continue
        if isinstance(value, dict):
            lines.append((number, value))
            columns.update(dict.fromkeys(value))
        else:
            lines.append((number, f"is {type(value).__name__}, expected an object"))
    return lines, list(columns)
