"""Logits that are kept: what a checkpoint said about utterances is asked once, whichever fold or run wants it.

    <folder>/<key of the checkpoint>/<hash of the utterances>.parquet     one file for each time something was missing

Shape suffixes: N utterances of the manifest, R some of them, C classes.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import records, storage
from lakd_ray.config import Brought, dump
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.models.brought import is_ours
from lakd_ray.schema import LOGITS

Logits = npt.NDArray[np.float32]


def key_of(checkpoint: str | Brought) -> str:
    """Identifies a sealed checkpoint folder by its files' hashes, a teacher from elsewhere by what is said of it."""
    if isinstance(checkpoint, Brought):
        sealed = key_of(checkpoint.checkpoint) if is_ours(checkpoint) else None
        return records.digest([dump(checkpoint), sealed])
    return records.digest(storage.read_json(storage.join(checkpoint, storage.SEAL)))


def read(folder: str, manifest: Manifest, classes: int) -> Logits:
    """What is kept in a checkpoint's folder, aligned with the manifest, shape [N, C]; NaN where nothing is."""
    logits_NC = np.full((len(manifest.table), classes), np.nan, dtype=np.float32)
    keys = list(zip(*(manifest.table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True))
    row_of = {key: row for row, key in enumerate(keys)}
    for info in storage.list_files(folder):
        if not info.name.endswith(".parquet"):
            continue
        table = storage.read_table(info.location)
        found = zip(*(table[name].to_pylist() for name in ("utterance", "audio_sha256")), strict=True)
        rows = [row_of.get(key, -1) for key in found]
        known = [index for index, row in enumerate(rows) if row >= 0]
        values = np.asarray(table["logits"].to_pylist(), dtype=np.float32).reshape(-1, classes)
        logits_NC[[rows[index] for index in known]] = values[known]
    return logits_NC


def write(folder: str, model: str, manifest: Manifest, rows: Rows, logits_RC: Logits) -> None:
    """Keep a checkpoint's logits on some rows, whole or not at all."""
    part = manifest.table.select(["utterance", "audio_sha256"]).take(rows)
    columns = {**{name: part[name] for name in part.column_names}, "model": [model] * len(rows)}
    table = pa.table(columns | {"logits": list(logits_RC)}, schema=LOGITS)
    storage.write_table(storage.join(folder, f"{records.digest(part.to_pydict())}.parquet"), table)
