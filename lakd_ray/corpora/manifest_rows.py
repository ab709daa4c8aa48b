"""Rows with named columns become clips: what manifests and tables have in common."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora.items import Clip, InvalidItem, normalize_emotion
from lakd_ray.errors import ConfigError, DataError

REQUIRED_COLUMNS = ("path", "emotion", "language", "speaker")
TIME_COLUMNS = ("start", "end")
OPTIONAL_COLUMNS = ("sentence", "session", "split", "id", *TIME_COLUMNS)

RowCells = dict[str, Any]


@dataclass(frozen=True)
class ColumnMap:
    """The columns of a manifest or table."""

    source_columns: Mapping[str, str]
    """Theirs by ours."""
    explicit_columns: frozenset[str]
    """Ours that the options name: their columns must be there."""
    default_language: str | None
    """Of rows that name none."""

    @classmethod
    def from_options(
        cls,
        importer: str,
        options: Mapping[str, Any],
        *,
        allowed: tuple[str, ...] = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS),
        opt_in: tuple[str, ...] = (),
    ) -> "ColumnMap":
        """From the options `columns` and `language`.

        Args:
            importer: its name, for errors.
            options: all its options.
            known: our columns.
            on_request: those of them that are read only where `columns` names them.

        Raises:
            ConfigError: they have the wrong form, or `columns` names none of ours.
        """
        columns, language = options.get("columns", {}), options.get("language")
        if not isinstance(columns, Mapping) or not all(isinstance(theirs, str) for theirs in columns.values()):
            raise ConfigError(
                f"option `columns` of importer `{importer}` is {columns!r}; expected a mapping, ours: theirs."
            )
        if strange := [str(ours) for ours in columns if ours not in allowed]:
            raise ConfigError(
                f"option `columns` of importer `{importer}` names {', '.join(strange)}; it maps ours: theirs, and ours "
                f"are {', '.join(allowed)}."
            )
        if language is not None and not isinstance(language, str):
            raise ConfigError(
                f"option `language` of importer `{importer}` is {language!r}; expected a code such as en."
            )
        names = {ours: columns.get(ours, ours) for ours in allowed if ours in columns or ours not in opt_in}
        return cls(names, frozenset(columns), language)

    def check_available(self, location: str, available: list[str]) -> None:
        """Refuse a table that lacks a column.

        Raises:
            DataError: it does.
        """
        wanted = {*REQUIRED_COLUMNS, *self.explicit_columns} & set(self.source_columns)
        if self.default_language is not None and "language" not in self.explicit_columns:
            wanted.discard("language")
        if missing := [
            theirs for ours, theirs in self.source_columns.items() if ours in wanted and theirs not in available
        ]:
            hint = " Its cells are separated by something else than commas." if len(available) == 1 else ""
            raise DataError(
                f"{location} lacks column {', '.join(missing)}; found {', '.join(available) or 'no columns'}.{hint} Rename "
                "its columns, map them with the option `columns: {ours: theirs}`, or give one language for all with "
                "the option `language`."
            )


@dataclass(frozen=True)
class ManifestRow:
    """One row and where it is."""

    cells: RowCells
    fallback_id: str
    """Stands for it where it has neither id nor path."""
    location: str
    """For people."""
    base_folder: str
    """Where its relative path starts."""
    path: str | None = None
    """Of a recording that is known to be there, instead of a column `path`."""


def make_clip(columns: ColumnMap, row: ManifestRow) -> Clip | InvalidItem:
    """A row as a clip, or why it is none."""
    try:
        values = _parse_texts(columns, row)
        start, end = _parse_time_range(columns, row.cells)
    except ValueError as error:
        return InvalidItem(id=row.fallback_id, source=row.location, reason=str(error))
    path = row.path or values.get("path")
    name = values.get("id") or (
        unicodedata.normalize("NFC", path) + _format_range_suffix(start, end) if path else row.fallback_id
    )
    if missing := [
        columns.source_columns[ours]
        for ours in REQUIRED_COLUMNS
        if ours in columns.source_columns and ours not in values
    ]:
        return InvalidItem(id=name, source=row.location, reason=f"no value for {', '.join(missing)}")
    assert path is not None  # it is required, or the row has one
    source = storage.join(row.base_folder, path) if row.path else _find_recording(path, row.base_folder)
    if source is None:
        reason = f"there is no file {path}, named in {row.location}"
        return InvalidItem(id=name, source=_resolve_path(row.base_folder, path), reason=reason, kind="missing")
    return Clip(
        id=name,
        source=source,
        emotion=normalize_emotion(values["emotion"]),
        language=values["language"].lower(),
        speaker=values["speaker"],
        session=values.get("session"),
        sentence=values.get("sentence"),
        split=values.get("split"),
        start=start,
        end=end,
    )


def _parse_texts(columns: ColumnMap, row: ManifestRow) -> dict[str, str]:
    """The values that are given, by our names; a ValueError says which is no text."""
    values: dict[str, str] = {}
    for ours, theirs in columns.source_columns.items():
        value = row.cells.get(theirs)
        if ours in TIME_COLUMNS:
            continue
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise ValueError(f"{theirs} is {value!r}, expected text")
        if value is not None and (plain := str(value).strip()):
            values[ours] = plain if ours == "path" else unicodedata.normalize("NFC", plain)
    if columns.default_language is not None:
        values.setdefault("language", columns.default_language)
    return values


def _parse_time_range(columns: ColumnMap, cells: RowCells) -> tuple[float | None, float | None]:
    """Start and end in seconds; a ValueError says what is wrong with them."""
    start, end = (
        _parse_seconds(name, cells.get(name))
        for name in (columns.source_columns.get(ours, "") for ours in TIME_COLUMNS)
    )
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"is from {start} to {end} s, expected 0 <= start < end")
    return start, end


def _parse_seconds(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{name} is {value!r}, expected seconds")
    return seconds


def _format_range_suffix(start: float | None, end: float | None) -> str:
    """Tells the parts of one recording apart."""
    if start is None and end is None:
        return ""
    return "#" + "-".join("" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") for value in (start, end))


def _resolve_path(folder: str, path: str) -> str:
    return path if storage.is_remote(path) or Path(path).is_absolute() else storage.join(folder, path)


def _find_recording(path: str, folder: str) -> str | None:
    """The recording's location; a local one may be spelt in another Unicode form on the disk than in the manifest."""
    for spelt in (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
        location = _resolve_path(folder, spelt)
        if storage.is_remote(location) or Path(storage.resolve_filesystem(location)[1]).is_file():
            return location
    return None
