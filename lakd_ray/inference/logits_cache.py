"""Cache of logits, so that each checkpoint runs once on an utterance for all folds and runs that need its logits.

    <folder>/<key of the checkpoint>/<hash of the utterances>.parquet     a file for each time utterances were missing

A file has a column for each class. Experiments with a common base experiment share the cache, and may list the same
classes in a different order, or map the classes of an external teacher to others: files of other classes are not read.

Shape suffixes: N utterances of the manifest, R some of them, C classes.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import storage
from lakd_ray.config import ExternalTeacherConfig, to_dict
from lakd_ray.data.class_columns import LOGIT, class_columns, list_classes, read_class_columns
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.schema import LOGITS_SCHEMA, with_logits
from lakd_ray.models.external_teacher import is_lakd_checkpoint
from lakd_ray.runs import record

Logits = npt.NDArray[np.float32]


def checkpoint_fingerprint(checkpoint: str | ExternalTeacherConfig) -> str:
    """Return a hash that identifies the weights of a checkpoint folder, or of an external teacher by its settings."""
    if isinstance(checkpoint, ExternalTeacherConfig):
        folder = checkpoint_fingerprint(checkpoint.checkpoint) if is_lakd_checkpoint(checkpoint) else None
        return record.digest([to_dict(checkpoint), folder])
    return record.folder_fingerprint(checkpoint)


def read_logits(folder: str, manifest: Manifest, emotions: Sequence[str]) -> Logits:
    """Return a checkpoint's cached logits, aligned with the manifest, shape [N, C]; NaN where nothing is cached.

    Args:
        folder: the checkpoint's folder in the cache.
        manifest: the utterances.
        emotions: the classes in the order of the result.
    """
    logits_NC = np.full((len(manifest.table), len(emotions)), np.nan, dtype=np.float32)
    keys = list(zip(*(manifest.table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True))
    row_of = {key: row for row, key in enumerate(keys)}
    for info in storage.list_files(folder):
        if not info.name.endswith(".parquet"):
            continue
        table = storage.read_table(info.location)
        if set(list_classes(table.column_names, LOGIT)) != set(emotions):
            continue
        cached_keys = zip(*(table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True)
        rows = [row_of.get(key, -1) for key in cached_keys]
        known = [index for index, row in enumerate(rows) if row >= 0]
        values = read_class_columns(table, LOGIT, emotions, context=info.location)
        logits_NC[[rows[index] for index in known]] = values[known]
    return logits_NC


def write_logits(
    folder: str, model_id: str, manifest: Manifest, rows: RowIndices, emotions: Sequence[str], logits_RC: Logits
) -> None:
    """Add a checkpoint's logits of some rows, whose class axis has the order of `emotions`; the write is atomic."""
    part = manifest.table.select(["utterance", "audio_sha256"]).take(rows)
    columns = {**{name: part[name] for name in part.column_names}, "model": [model_id] * len(rows)}
    columns |= class_columns(LOGIT, emotions, logits_RC)
    table = pa.table(columns, schema=with_logits(LOGITS_SCHEMA, emotions))
    name = record.digest([sorted(emotions), part.to_pydict()])
    storage.write_table(storage.join(folder, f"{name}.parquet"), table)
