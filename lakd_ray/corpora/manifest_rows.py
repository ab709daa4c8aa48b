"""Convert rows with named columns to clips, for the importers `csv` and `huggingface`."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakd_ray import storage
from lakd_ray.corpora.items import Clip, InvalidItem, normalize_emotion
from lakd_ray.errors import ConfigError, DataError, StorageError

REQUIRED_COLUMNS = ("path", "emotion", "language", "speaker")
TIME_COLUMNS = ("start", "end")
OPTIONAL_COLUMNS = ("sentence", "session", "split", "id", *TIME_COLUMNS)

RowCells = dict[str, Any]


@dataclass(frozen=True)
class ColumnMap:
    """The mapping of our column names to those of a manifest or table."""

    source_columns: Mapping[str, str]
    """Column names of the table by our names."""
    explicit_columns: frozenset[str]
    """Our names that the option `columns` maps; these columns must exist."""
    default_language: str | None
    """Language of rows without a language."""

    @classmethod
    def from_options(
        cls,
        importer: str,
        options: Mapping[str, Any],
        *,
        allowed: tuple[str, ...] = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS),
        opt_in: tuple[str, ...] = (),
    ) -> "ColumnMap":
        """Create the mapping from the options `columns` and `language`.

        Args:
            importer: name of the importer, for error messages.
            options: all options of the importer.
            allowed: our column names.
            opt_in: those of `allowed` that are read only if `columns` maps them.

        Raises:
            ConfigError: an option has an invalid type, or `columns` maps a name that is not in `allowed`.
        """
        columns, language = options.get("columns", {}), options.get("language")
        if not isinstance(columns, Mapping) or not all(isinstance(theirs, str) for theirs in columns.values()):
            raise ConfigError(
                f"option `columns` of importer `{importer}` is {columns!r}; expected a mapping "
                "from our names to columns of the table."
            )
        if unknown := [str(ours) for ours in columns if ours not in allowed]:
            raise ConfigError(
                f"option `columns` of importer `{importer}` names {', '.join(unknown)}; it maps a name to a column "
                f"of the table, and names are {', '.join(allowed)}."
            )
        if language is not None and not isinstance(language, str):
            raise ConfigError(
                f"option `language` of importer `{importer}` is {language!r}; expected a code such as en."
            )
        names = {ours: columns.get(ours, ours) for ours in allowed if ours in columns or ours not in opt_in}
        return cls(names, frozenset(columns), language)

    def check_available(self, location: str, available: list[str]) -> None:
        """Check that a table has all required columns.

        Raises:
            DataError: a column is missing.
        """
        required = {*REQUIRED_COLUMNS, *self.explicit_columns} & set(self.source_columns)
        if self.default_language is not None and "language" not in self.explicit_columns:
            required.discard("language")
        if missing := [
            theirs for ours, theirs in self.source_columns.items() if ours in required and theirs not in available
        ]:
            hint = " Separate its cells by commas." if len(available) == 1 else ""
            raise DataError(
                f"{location} lacks column {', '.join(missing)}; found {', '.join(available) or 'no columns'}.{hint} "
                "Rename its columns, map them with the option `columns: {name: column}`, or set the language of all "
                "rows with the option `language`."
            )


@dataclass(frozen=True)
class ManifestRow:
    """One row of a manifest or table with its location."""

    cells: RowCells
    fallback_id: str
    """Id of a row that has neither an id nor a path."""
    location: str
    """Location of the row in error messages."""
    base_folder: str
    """Folder at which relative paths start."""
    root: str | None = None
    """Folder in which the recording must be; None: anywhere."""
    path: str | None = None
    """Path of a recording that is known to exist; replaces the column `path`."""


def make_clip(columns: ColumnMap, row: ManifestRow) -> Clip | InvalidItem:
    """Convert a row to a clip, or to an invalid item that contains the reason."""
    try:
        values = _parse_texts(columns, row)
        start, end = _parse_time_range(columns, row.cells)
    except ValueError as error:
        return InvalidItem(id=row.fallback_id, source=row.location, reason=str(error))
    path = row.path or values.get("path")
    clip_id = values.get("id") or (
        unicodedata.normalize("NFC", path) + _format_range_suffix(start, end) if path else row.fallback_id
    )
    if missing := [
        columns.source_columns[ours]
        for ours in REQUIRED_COLUMNS
        if ours in columns.source_columns and ours not in values
    ]:
        return InvalidItem(id=clip_id, source=row.location, reason=f"no value for {', '.join(missing)}")
    assert path is not None  # either `path` is a required column or `row.path` is set
    if not row.path and row.root is not None and not _is_below(row.root, _resolve_path(row.base_folder, path)):
        reason = (
            f"the recording {path} is not in the corpus's folder {row.root}; move it there, or set `root` to the "
            "manifest file, which may name recordings anywhere"
        )
        return InvalidItem(id=clip_id, source=row.location, reason=reason, kind="missing")
    source = storage.join(row.base_folder, path) if row.path else _find_recording(path, row.base_folder)
    if source is None:
        reason = f"there is no file {path}, named in {row.location}"
        return InvalidItem(id=clip_id, source=_resolve_path(row.base_folder, path), reason=reason, kind="missing")
    return Clip(
        id=clip_id,
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
    """Return the non-empty values by our names.

    Raises:
        ValueError: a value is not text.
    """
    values: dict[str, str] = {}
    for ours, theirs in columns.source_columns.items():
        value = row.cells.get(theirs)
        if ours in TIME_COLUMNS:
            continue
        if not isinstance(value, str | int | None) or isinstance(value, bool):
            raise ValueError(f"{theirs} is {value!r}, expected text")
        if value is not None and (text := str(value).strip()):
            values[ours] = text if ours == "path" else unicodedata.normalize("NFC", text)
    if columns.default_language is not None:
        values.setdefault("language", columns.default_language)
    return values


def _parse_time_range(columns: ColumnMap, cells: RowCells) -> tuple[float | None, float | None]:
    """Return start and end in seconds, None where absent.

    Raises:
        ValueError: a value is not a number, or the range is empty or starts before 0.
    """
    start, end = (
        _parse_seconds(name, cells.get(name))
        for name in (columns.source_columns.get(ours, "") for ours in TIME_COLUMNS)
    )
    if (start or 0.0) < 0 or (end is not None and end <= (start or 0.0)):
        raise ValueError(f"start is {start} s and end is {end} s, expected 0 <= start < end")
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
    """Return a suffix of the id that distinguishes the parts of one recording."""
    if start is None and end is None:
        return ""
    return "#" + "-".join("" if value is None else f"{value:.6f}".rstrip("0").rstrip(".") for value in (start, end))


def _resolve_path(folder: str, path: str) -> str:
    return path if storage.is_remote(path) or Path(path).is_absolute() else storage.join(folder, path)


def _is_below(root: str, location: str) -> bool:
    """Return whether a location is in a folder; links in the folder may lead anywhere, as the user's own."""
    if storage.is_remote(root) != storage.is_remote(location):
        return False
    (_, top), (_, path) = storage.resolve_filesystem(root), storage.resolve_filesystem(location)
    try:
        storage.confine(top, path.removeprefix(top.rstrip("/") + "/"), allow_links=True)
    except StorageError:
        return False
    return True


def _find_recording(path: str, folder: str) -> str | None:
    """Return the location of a recording; the Unicode form of a local path may differ from that in the manifest."""
    for candidate in (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
        location = _resolve_path(folder, candidate)
        if storage.is_remote(location) or Path(storage.resolve_filesystem(location)[1]).is_file():
            return location
    return None
