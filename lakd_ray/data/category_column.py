"""A column of names as codes, for operations over all rows at once."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class CategoryColumn:
    """A dictionary-encoded column, where `values[codes[i]]` is the value of row i, and code -1 is null."""

    codes: npt.NDArray[np.int64]
    values: list[str]

    @classmethod
    def from_table(cls, manifest: pa.Table, name: str) -> "CategoryColumn":
        """Encode a column of a table."""
        encoded = pc.cast(manifest[name], pa.large_string()).combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(codes, encoded.dictionary.to_pylist())

    def isin(self, values: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return which rows have one of the values."""
        selected = set(values)
        return np.array([*(name in selected for name in self.values), False])[self.codes]

    def unique_values(self, rows_N: npt.NDArray[np.intp]) -> list[str]:
        """Return the sorted distinct values of some rows."""
        return sorted(self.values[code] for code in np.unique(self.codes[rows_N]) if code >= 0)
