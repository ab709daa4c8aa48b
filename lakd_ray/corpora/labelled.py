"""Corpora whose labels are in one table beside the recordings, which it names by file."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.corpora import recordings, table
from lakd_ray.corpora.clip import Clip, Item, LeftOut, Problem
from lakd_ray.errors import DataError

Labels = dict[str, str]


@dataclass(frozen=True)
class Labelled:
    """How a corpus keeps its labels."""

    corpus: str
    """Its name, for people."""
    tables: tuple[str, ...]
    """File names of its table."""
    file: str
    """Column of the recordings' file names."""
    needs: tuple[str, ...]
    """Other columns that must be there."""

    def read(self, root: str, understand: Callable[[str, str, Labels], Clip | LeftOut | str]) -> Iterator[Item]:
        """Read every row, and every recording that no row names.

        Args:
            root: the corpus's folder, or one above it.
            understand: what a recording's name, its source and its row tell; a text says why it cannot be so.

        Raises:
            DataError: there is not one table below `root`, or it lacks a column or names a file twice.
        """
        files = recordings.files(root)
        location = self._table(root, files)
        by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            if recordings.is_audio(file):
                by_name[_name(file)].append(file)
        for name, labels in self._rows(location).items():
            found = by_name.pop(_name(name), [])
            plain = _name(name).rpartition(".")[0] or name
            if isinstance(labels, str):
                yield Problem(id=plain, source=location, reason=labels)
            elif len(found) != 1:
                places = f"{len(found)} recordings have its name: {', '.join(found)}" if found else "has no recording"
                reason, kind = f"has a label in {location}; {places}", "unlabelled" if found else "missing"
                yield Problem(id=plain, source=storage.join(root, name), reason=reason, kind=kind)
            else:
                source = storage.join(root, found[0])
                item = understand(plain, source, labels)
                yield Problem(id=plain, source=source, reason=item) if isinstance(item, str) else item
        for name, unnamed in by_name.items():
            for file in unnamed:
                reason = f"has no label in {location}"
                yield Problem(id=name.rpartition(".")[0], source=storage.join(root, file), reason=reason)

    def _table(self, root: str, files: list[str]) -> str:
        tables = [file for file in files if _name(file) in self.tables]
        if len(tables) != 1:
            what = f"{len(tables)} tables {', '.join(tables)}" if tables else f"{len(files)} files"
            raise DataError(
                f"{root} is not {self.corpus}: found {what}. Expected one {self.tables[0]} with columns {self.file}, "
                f"{', '.join(self.needs)}, and the recordings below the same folder: check the corpus's `root`."
            )
        return storage.join(root, tables[0])

    def _rows(self, location: str) -> dict[str, Labels | str]:
        """Labels by file name; a text says what is wrong with the row."""
        lines, columns = table.lines(location)
        if missing := [name for name in (self.file, *self.needs) if name not in columns]:
            raise DataError(
                f"{location} lacks column {', '.join(missing)}; found {', '.join(columns)}. Take it from {self.corpus} "
                "again as it came."
            )
        rows: dict[str, Labels | str] = {}
        for number, cells in lines:
            name = "" if isinstance(cells, str) else str(cells[self.file]).strip()
            if isinstance(cells, str) or not name:
                rows[f"line-{number}"] = f"line {number} {cells if isinstance(cells, str) else 'names no file'}"
            elif name in rows:
                raise DataError(f"{location} names {name} again in line {number}; expected each file once.")
            else:
                rows[name] = {column: str(value).strip() for column, value in cells.items()}
        return rows


def _name(file: str) -> str:
    return unicodedata.normalize("NFC", file.rpartition("/")[2])
