"""Any corpus, described by a CSV or JSONL manifest: the importer `csv`.

Recordings named by a relative path lie below the manifest's folder. Local ones are looked for here; in a bucket that
would take a request each, so there the audio door finds what is missing.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora.clip import Clip, Problem
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import KNOWN_EMOTIONS

REQUIRED = ("path", "emotion", "language", "speaker")
OPTIONAL = ("sentence", "session", "split", "id")
MANIFESTS = ("manifest.csv", "manifest.jsonl")

Cells = dict[str, Any]
# A row with its line number, or why the line is none.
Row = tuple[int, Cells | str]


@dataclass(frozen=True)
class _Manifest:
    """How one manifest is to be understood."""

    location: str
    names: Mapping[str, str]
    """Its column names by ours."""
    language: str | None
    """Of rows that name none."""

    @property
    def folder(self) -> str:
        """Where relative paths start."""
        return self.location[: self.location.rfind("/") + 1] or "."

    def where(self, line: int) -> str:
        """A line's place, for people."""
        return f"{self.location} line {line}"


def read(root: str, options: Mapping[str, Any]) -> Iterator[Clip | Problem]:
    """Read a manifest, or the `manifest.csv` or `manifest.jsonl` of a folder.

    Raises:
        ConfigError: an option has the wrong form.
        DataError: there is no manifest, or it cannot be read, lacks a column, is empty or repeats an id.
    """
    names, language = _options(options)
    location = _find(root)
    text = _text(location)
    rows, found = _jsonl(text) if location.endswith(".jsonl") else _csv(text, location)
    _check_columns(location, found, names, options)
    if not rows:
        raise DataError(f"{location} has columns {', '.join(found)} but no rows; expected one row per recording.")
    manifest = _Manifest(location, names, language)
    lines: dict[str, int] = {}
    for line, cells in rows:
        item = _clip(manifest, line, cells)
        if isinstance(item, Clip):
            if item.id in lines:
                raise DataError(
                    f"{location}: id {item.id!r} is in line {lines[item.id]} and again in line {line}; expected every "
                    "id once. Delete one row, or tell them apart in a column `id` (without it the path is the id)."
                )
            lines[item.id] = line
        yield item


def _options(options: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """Our column names with the manifest's, and the language of rows that name none."""
    columns, language = options.get("columns", {}), options.get("language")
    known = (*REQUIRED, *OPTIONAL)
    if not isinstance(columns, Mapping) or not all(isinstance(theirs, str) for theirs in columns.values()):
        raise ConfigError(f"option `columns` of importer `csv` is {columns!r}; expected a mapping, ours: theirs.")
    if strange := [str(ours) for ours in columns if ours not in known]:
        raise ConfigError(
            f"option `columns` of importer `csv` names {', '.join(strange)}; it maps ours: theirs, and ours are "
            f"{', '.join(known)}."
        )
    if language is not None and not isinstance(language, str):
        raise ConfigError(f"option `language` of importer `csv` is {language!r}; expected a code such as en.")
    return {ours: columns.get(ours, ours) for ours in known}, language


def _find(root: str) -> str:
    if root.endswith((".csv", ".jsonl")):
        if not storage.exists(root):
            raise DataError(f"there is no manifest {root}; check the corpus's `root`.")
        return root
    found = [name for name in MANIFESTS if storage.exists(storage.join(root, name))]
    if len(found) != 1:
        what = "both" if found else "neither" if storage.exists(root) else "no such folder, so neither"
        raise DataError(
            f"{root} holds {what} {' nor '.join(MANIFESTS) if not found else ' and '.join(MANIFESTS)}; expected one of "
            "them. Name the manifest itself as the corpus's `root`."
        )
    return storage.join(root, found[0])


def _text(location: str) -> str:
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
        raise DataError(f"{location} is empty; expected a row of column names ({', '.join(REQUIRED)}) and rows.")
    return text


def _csv(text: str, location: str) -> tuple[list[Row], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: an open quote would swallow what follows
    rows: list[Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                rows.append((reader.line_num, f"has {len(cells)} cells, expected {len(header)}"))
            else:
                rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{location} is damaged in line {reader.line_num}: {error}. Correct its quotes.") from None
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{location} has more than one column {', '.join(repeated)}; expected each name once.")
    return rows, header


def _jsonl(text: str) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also splits at U+2028, valid inside JSON
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            rows.append((number, f"is not JSON: {error}"))
            continue
        if isinstance(value, dict):
            rows.append((number, value))
            columns.update(dict.fromkeys(value))
        else:
            rows.append((number, f"is {type(value).__name__}, expected an object"))
    return rows, list(columns)


def _check_columns(location: str, found: list[str], names: Mapping[str, str], options: Mapping[str, Any]) -> None:
    wanted = {*REQUIRED, *options.get("columns", {})}
    if "language" in options and "language" not in options.get("columns", {}):
        wanted.discard("language")
    missing = [theirs for ours, theirs in names.items() if ours in wanted and theirs not in found]
    if missing:
        hint = " Its cells are separated by something else than commas." if len(found) == 1 else ""
        raise DataError(
            f"{location} lacks column {', '.join(missing)}; found {', '.join(found) or 'no columns'}.{hint} Rename its "
            "columns, map them with the option `columns: {ours: theirs}`, or give one language for all with the option "
            "`language`."
        )
    if segments := [name for name in ("start", "end") if name in found and name not in names.values()]:
        raise DataError(
            f"{location} has column {', '.join(segments)}: parts of recordings cannot be read yet, and the whole would "
            "carry the part's label. Cut the parts into files of their own and take the column out."
        )


def _clip(manifest: _Manifest, line: int, cells: Cells | str) -> Clip | Problem:
    where = manifest.where(line)
    if isinstance(cells, str):
        return Problem(id=f"line-{line}", source=where, reason=cells)
    values: dict[str, str] = {}
    for ours, theirs in manifest.names.items():
        value = cells.get(theirs)
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            return Problem(id=f"line-{line}", source=where, reason=f"{theirs} is {value!r}, expected text")
        if value is not None and (plain := str(value).strip()):
            values[ours] = plain if ours == "path" else unicodedata.normalize("NFC", plain)
    if manifest.language is not None:
        values.setdefault("language", manifest.language)
    name = values.get("id") or unicodedata.normalize("NFC", values.get("path", f"line-{line}"))
    if missing := [manifest.names[ours] for ours in REQUIRED if ours not in values]:
        return Problem(id=name, source=where, reason=f"no value for {', '.join(missing)}")
    source = _locate(values["path"], manifest.folder)
    if source is None:
        return Problem(id=name, source=where, reason=f"there is no file {values['path']}", kind="missing")
    emotion = values["emotion"]
    return Clip(
        id=name,
        source=source,
        emotion=emotion.lower() if emotion.lower() in KNOWN_EMOTIONS else emotion,
        language=values["language"].lower(),
        speaker=values["speaker"],
        session=values.get("session"),
        sentence=values.get("sentence"),
        split=values.get("split"),
    )


def _locate(path: str, folder: str) -> str | None:
    """The recording's location; a local one may be spelt in another Unicode form on the disk than in the manifest."""
    for spelt in (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
        location = spelt if storage.is_remote(spelt) or Path(spelt).is_absolute() else storage.join(folder, spelt)
        if storage.is_remote(location) or Path(storage.resolve(location)[1]).is_file():
            return location
    return None
