"""Read corpora with one table of labels, in which each row names the file of a recording."""

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
    """The label table of a corpus and the reader for it."""

    corpus_name: str
    """Name of the corpus in error messages."""
    table_names: tuple[str, ...]
    """Possible file names of the table."""
    file_column: str
    """Column with the file names of the recordings."""
    required_columns: tuple[str, ...]
    """Other columns that the table must have."""

    def iter_items(
        self, root: str, parse_labels: Callable[[str, str, LabelRow], Clip | Excluded | str]
    ) -> Iterator[Item]:
        """Yield an item for every row of the table and for every recording without a row.

        Args:
            root: the corpus's folder, or a folder above it.
            parse_labels: converts the name of a recording, its source and its row to a clip; a string is the reason
                why the row is invalid.

        Raises:
            DataError: there is not exactly one table below `root`, it lacks a column, or it names a file twice.
        """
        files = sources.list_files(root)
        location = self._find_table(root, files)
        files_by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            if sources.has_audio_suffix(file):
                files_by_name[_basename(file)].append(file)
        for name, labels in self._read_rows(location).items():
            matches = files_by_name.pop(_basename(name), [])
            clip_id = _basename(name).rpartition(".")[0] or name
            if isinstance(labels, str):
                yield InvalidItem(id=clip_id, source=location, reason=labels)
            elif len(matches) != 1:
                problem = f"has {len(matches)} recordings: {', '.join(matches)}" if matches else "has no recording"
                reason, kind = f"has a label in {location}; {problem}", "unlabeled" if matches else "missing"
                yield InvalidItem(id=clip_id, source=storage.join(root, name), reason=reason, kind=kind)
            else:
                source = storage.join(root, matches[0])
                item = parse_labels(clip_id, source, labels)
                yield InvalidItem(id=clip_id, source=source, reason=item) if isinstance(item, str) else item
        for name, unlabeled in files_by_name.items():
            for file in unlabeled:
                reason = f"has no label in {location}"
                yield InvalidItem(id=name.rpartition(".")[0], source=storage.join(root, file), reason=reason)

    def _find_table(self, root: str, files: list[str]) -> str:
        tables = [file for file in files if _basename(file) in self.table_names]
        if len(tables) != 1:
            found = f"{len(tables)} tables {', '.join(tables)}" if tables else f"{len(files)} files"
            columns = ", ".join((self.file_column, *self.required_columns))
            raise DataError(
                f"{root} is not {self.corpus_name}: found {found}. Expected one {self.table_names[0]} with columns "
                f"{columns}, and the recordings below the same folder: check the corpus's `root`."
            )
        return storage.join(root, tables[0])

    def _read_rows(self, location: str) -> dict[str, LabelRow | str]:
        """Return the rows by file name; a string is the reason why a row is invalid."""
        lines, columns = csv_manifest.read_lines(location)
        if missing := [name for name in (self.file_column, *self.required_columns) if name not in columns]:
            raise DataError(
                f"{location} lacks column {', '.join(missing)}; found {', '.join(columns)}. Restore the original table "
                f"of {self.corpus_name}."
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
