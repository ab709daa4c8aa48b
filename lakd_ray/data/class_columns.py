"""Columns of tables with one value per class, named after the class, so that readers match classes by name.

Shape suffixes: R rows, C classes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray.labels import class_indices

PROBABILITY, LOGIT = "p_", "logit_"
"""Prefixes of the columns; the name of the class follows."""


def class_fields(prefix: str, emotions: Sequence[str], *, nullable: bool = False) -> list[pa.Field]:
    """Return the fields of the columns, one for each class."""
    return [pa.field(prefix + emotion, pa.float32(), nullable=nullable) for emotion in emotions]


def class_columns(
    prefix: str, emotions: Sequence[str], values_RC: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the columns of values whose class axis has the order of `emotions`."""
    return {prefix + emotion: values_RC[:, index] for index, emotion in enumerate(emotions)}


def list_classes(column_names: Sequence[str], prefix: str) -> list[str]:
    """Return the classes that a table has columns of, in the table's order."""
    return [name.removeprefix(prefix) for name in column_names if name.startswith(prefix)]


def read_class_columns(
    table: pa.Table, prefix: str, emotions: Sequence[str], *, context: str
) -> npt.NDArray[np.float32]:
    """Return the values of a table with class columns, in the order of `emotions`, shape [R, C].

    Args:
        context: the table's file, for the error message.

    Raises:
        DataError: the table has columns of other classes.
    """
    found = list_classes(table.column_names, prefix)
    ordered = [found[index] for index in class_indices(found, emotions, context=context)]
    return np.stack([table[prefix + emotion].to_numpy() for emotion in ordered], axis=1).astype(np.float32)
