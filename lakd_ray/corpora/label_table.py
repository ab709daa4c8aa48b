"""Corpora whose labels are in one table beside the recordings, which it names by file."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.audio import sources
from lakd_ray.corpora import csv_manifest
from lakd_ray.corpora.items import Clip, Excluded, InvalidItem, Item
from lakd_ray.errors import DataError

LabelRow = dict[str, str]


@dataclass(frozen=True)
class LabelTable:
    """How a corpus keeps its labels."""

    corpus_name: str
    """Its name, for people."""
    table_names: tuple[str, ...]
    """File names of its table."""
    file_column: str
    """Column of the recordings' file names."""
    required_columns: tuple[str, ...]
    """Other columns that must be there."""

    def iter_items(
        self, root: str, parse_labels: Callable[[str, str, LabelRow], Clip | Excluded | str]
    ) -> Iterator[Item]:
        """Read every row, and every recording that no row names.

        Args:
            root: the corpus's folder, or one above it.
            parse_labels: what a recording's name, its source and its row tell; a text says why it cannot be so.

        Raises:
            DataError: there is not one table below `root`, or it lacks a column or names a file twice.
        """
        files = sources.list_files(root)
        location = self._find_table(root, files)
        by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            if sources.has_audio_suffix(file):
                by_name[_basename(file)].append(file)
        for name, labels in self._read_rows(location).items():
            found = by_name.pop(_basename(name), [])
            plain = _basename(name).rpartition(".")[0] or name
            if isinstance(labels, str):
                yield InvalidItem(id=plain, source=location, reason=labels)
            elif len(found) != 1:
                places = f"{len(found)} recordings have its name: {', '.join(found)}" if found else "has no recording"
                reason, kind = f"has a label in {location}; {places}", "unlabeled" if found else "missing"
                yield InvalidItem(id=plain, source=storage.join(root, name), reason=reason, kind=kind)
            else:
                source = storage.join(root, found[0])
                item = parse_labels(plain, source, labels)
                yield InvalidItem(id=plain, source=source, reason=item) if isinstance(item, str) else item
        for name, unnamed in by_name.items():
            for file in unnamed:
                reason = f"has no label in {location}"
                yield InvalidItem(id=name.rpartition(".")[0], source=storage.join(root, file), reason=reason)

    def _find_table(self, root: str, files: list[str]) -> str:
        tables = [file for file in files if _basename(file) in self.table_names]
        if len(tables) != 1:
            what = f"{len(tables)} tables {', '.join(tables)}" if tables else f"{len(files)} files"
            raise DataError(
                f"{root} is not {self.corpus_name}: found {what}. Expected one {self.table_names[0]} with columns {self.file_column}, "
                f"{', '.join(self.required_columns)}, and the recordings below the same folder: check the corpus's `root`."
            )
        return storage.join(root, tables[0])

    def _read_rows(self, location: str) -> dict[str, LabelRow | str]:
        """Labels by file name; a text says what is wrong with the row."""
        lines, columns = csv_manifest.read_lines(location)
        if missing := [name for name in (self.file_column, *self.required_columns) if name not in columns]:
            raise DataError(
                f"{location} lacks column {', '.join(missing)}; found {', '.join(columns)}. Take it from {self.corpus_name} "
                "again as it came."
            )
        rows: dict[str, LabelRow | str] = {}
        for number, cells in lines:
            name = "" if isinstance(cells, str) else str(cells[self.file_column]).strip()
            if isinstance(cells, str) or not name:
                rows[f"line-{number}"] = f"line {number} {cells if isinstance(cells, str) else 'names no file'}"
            elif name in rows:
                raise DataError(f"{location} names {name} again in line {number}; expected each file once.")
            else:
                rows[name] = {column: str(value).strip() for column, value in cells.items()}
        return rows


def _basename(file: str) -> str:
    return unicodedata.normalize("NFC", file.rpartition("/")[2])
