"""Any corpus, described by a CSV or JSONL manifest: the importer `csv`.

Recordings named by a relative path lie below the manifest's folder. Local ones are looked for here; in a bucket that
would take a request each, so there the audio door finds what is missing.
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

# A row with its line number, or why the line is none.
ManifestLine = tuple[int, RowCells | str]


def iter_items(root: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """Read a manifest, or the `manifest.csv` or `manifest.jsonl` of a folder.

    Raises:
        ConfigError: an option has the wrong form.
        DataError: there is no manifest, or it cannot be used, see `clips`.
    """
    yield from iter_clips(_find_manifest(root), ColumnMap.from_options("csv", options))


def iter_clips(location: str, columns: ColumnMap) -> Iterator[Clip | InvalidItem]:
    """The rows of one CSV or JSONL file; recordings are looked for below its folder.

    Raises:
        DataError: it cannot be read, lacks a column, is empty or repeats an id.
    """
    content, found = read_lines(location)
    columns.check_available(location, found)
    if not content:
        raise DataError(f"{location} has columns {', '.join(found)} but no rows; expected one row per recording.")
    folder = location[: location.rfind("/") + 1] or "."
    seen: dict[str, int] = {}
    for number, cells in content:
        where, name = f"{location} line {number}", f"line-{number}"
        if isinstance(cells, str):
            yield InvalidItem(id=name, source=where, reason=cells)
            continue
        item = manifest_rows.make_clip(columns, manifest_rows.ManifestRow(cells, name, where, folder))
        if isinstance(item, Clip):
            if item.id in seen:
                raise DataError(
                    f"{location}: id {item.id!r} is in line {seen[item.id]} and again in line {number}; expected every "
                    "id once. Delete one row, or tell them apart in a column `id` (without it the path is the id)."
                )
            seen[item.id] = number
        yield item


def read_lines(location: str) -> tuple[list[ManifestLine], list[str]]:
    """The rows of a CSV or JSONL file and the names of its columns.

    Raises:
        DataError: it cannot be read.
    """
    text = _read_text(location)
    return _parse_jsonl(text) if location.endswith(".jsonl") else _parse_csv(text, location)


def _find_manifest(root: str) -> str:
    if root.endswith((".csv", ".jsonl")):
        if not storage.exists(root):
            raise DataError(f"there is no manifest {root}; check the corpus's `root`.")
        return root
    found = [name for name in MANIFEST_NAMES if storage.exists(storage.join(root, name))]
    if len(found) != 1:
        what = "both" if found else "neither" if storage.exists(root) else "no such folder, so neither"
        raise DataError(
            f"{root} holds {what} {' nor '.join(MANIFEST_NAMES) if not found else ' and '.join(MANIFEST_NAMES)}; expected one of "
            "them. Name the manifest itself as the corpus's `root`."
        )
    return storage.join(root, found[0])


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
            f"{location} is empty; expected a row of column names ({', '.join(REQUIRED_COLUMNS)}) and rows."
        )
    return text


def _parse_csv(text: str, location: str) -> tuple[list[ManifestLine], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: an open quote would swallow what follows
    found: list[ManifestLine] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                found.append((reader.line_num, f"has {len(cells)} cells, expected {len(header)}"))
            else:
                found.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{location} is damaged in line {reader.line_num}: {error}. Correct its quotes.") from None
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{location} has more than one column {', '.join(repeated)}; expected each name once.")
    return found, header


def _parse_jsonl(text: str) -> tuple[list[ManifestLine], list[str]]:
    found: list[ManifestLine] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also splits at U+2028, valid inside JSON
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            found.append((number, f"is not JSON: {error}"))
            continue
        if isinstance(value, dict):
            found.append((number, value))
            columns.update(dict.fromkeys(value))
        else:
            found.append((number, f"is {type(value).__name__}, expected an object"))
    return found, list(columns)
