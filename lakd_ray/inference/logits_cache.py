"""Cache of logits, so that each checkpoint runs once on an utterance for all folds and runs that need its logits.

    <folder>/<key of the checkpoint>/<hash of the utterances>.parquet     a file for each time utterances were missing

Shape suffixes: N utterances of the manifest, R some of them, C classes.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import storage
from lakd_ray.config import ExternalTeacherConfig, to_dict
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.schema import LOGITS_SCHEMA
from lakd_ray.models.external_teacher import is_lakd_checkpoint
from lakd_ray.runs import record

Logits = npt.NDArray[np.float32]


def checkpoint_fingerprint(checkpoint: str | ExternalTeacherConfig) -> str:
    """Return a hash that identifies the weights of a checkpoint folder, or of an external teacher by its settings."""
    if isinstance(checkpoint, ExternalTeacherConfig):
        folder = checkpoint_fingerprint(checkpoint.checkpoint) if is_lakd_checkpoint(checkpoint) else None
        return record.digest([to_dict(checkpoint), folder])
    return record.folder_fingerprint(checkpoint)


def read_logits(folder: str, manifest: Manifest, num_classes: int) -> Logits:
    """Return a checkpoint's cached logits, aligned with the manifest, shape [N, C]; NaN where nothing is cached."""
    logits_NC = np.full((len(manifest.table), num_classes), np.nan, dtype=np.float32)
    keys = list(zip(*(manifest.table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True))
    row_of = {key: row for row, key in enumerate(keys)}
    for info in storage.list_files(folder):
        if not info.name.endswith(".parquet"):
            continue
        table = storage.read_table(info.location)
        cached_keys = zip(*(table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True)
        rows = [row_of.get(key, -1) for key in cached_keys]
        known = [index for index, row in enumerate(rows) if row >= 0]
        values = np.asarray(table["logits"].to_pylist(), dtype=np.float32).reshape(-1, num_classes)
        logits_NC[[rows[index] for index in known]] = values[known]
    return logits_NC


def write_logits(folder: str, model_id: str, manifest: Manifest, rows: RowIndices, logits_RC: Logits) -> None:
    """Add a checkpoint's logits of some rows to the cache; the write is atomic."""
    part = manifest.table.select(["utterance", "audio_sha256"]).take(rows)
    columns = {**{name: part[name] for name in part.column_names}, "model": [model_id] * len(rows)}
    table = pa.table(columns | {"logits": list(logits_RC)}, schema=LOGITS_SCHEMA)
    storage.write_table(storage.join(folder, f"{record.digest(part.to_pydict())}.parquet"), table)
