"""The worker of a bulk prediction: predicts one part per row. Ray Data calls it; the module needs no Ray."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Recording
from lakd_ray.config import Backend
from lakd_ray.data import schema
from lakd_ray.errors import ClipError, LakdError
from lakd_ray.grouping import group_by_budget
from lakd_ray.inference.bulk.inputs import InputEntry
from lakd_ray.inference.bulk.prefetch import PrefetchingDecoder
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.predictor import Predictor
from lakd_ray.inference.results import EmotionResult

_MAX_BATCH_SECONDS = 240.0  # seconds of audio in one call of the predictor, which sorts them by length
_MAX_BATCH_RECORDINGS = 64

DecodedEntry = tuple[InputEntry, Recording | ClipError]


class BulkWorker:
    """An actor that holds the model and predicts one part for each row of its input.

    Args:
        checkpoint: checkpoint folder.
        cpus: torch threads, and number of decoding processes.
        language: language of recordings whose manifest has none; None if it is identified or unknown.
        max_seconds: longer recordings are quarantined.
        backend: inference backend, see `lakd_ray.inference.backends`.
        fences: the driver's right to write, see `lakd_ray.storage.join_fences`.
    """

    def __init__(
        self,
        checkpoint: str,
        cpus: int,
        language: str | None,
        max_seconds: float,
        backend: Backend = "torch",
        fences: Sequence[dict[str, Any]] = (),
    ):
        storage.join_fences(fences)
        self._checkpoint, self._cpus, self._language, self._backend = checkpoint, cpus, language, backend
        self._decoder = PrefetchingDecoder(cpus, max_seconds)  # shared by all parts: its processes start slowly
        self._predictor: Predictor | None = None

    def close(self) -> None:
        """Stop the decoding processes; they also stop when this process ends."""
        self._decoder.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Predict and write the parts of a table.

        Args:
            table: columns `part` (the location to write) and `entries` (JSON).

        Returns:
            Columns `part` and `error`, which is empty if the part was written.
        """
        errors = []
        for row in table.to_pylist():
            entries = [InputEntry(*values) for values in json.loads(row["entries"])]
            try:
                with storage.explain_full_disk():
                    storage.write_table(row["part"], self.predict_part(entries))
                errors.append("")
            except LakdError as error:  # raised here, Ray would show it as a traceback
                errors.append(str(error))
        return pa.table({"part": table["part"], "error": pa.array(errors, pa.string())})

    def predict_part(self, entries: Sequence[InputEntry]) -> pa.Table:
        """Return the rows of a part (`lakd_ray.data.schema.bulk_predictions_schema`), in the order of its entries.

        Raises:
            StorageError, CheckpointError, ConfigError: the model cannot be loaded, or the backend is not available.
        """
        if self._predictor is None:  # not in __init__: Ray restarts an actor whose constructor fails, without end
            self._predictor = Predictor.load(self._checkpoint, threads=self._cpus, backend=self._backend)
        rows: list[dict[str, Any]] = []
        recordings = self._decoder.iter_recordings([entry.path for entry in entries])
        decoded = zip(entries, recordings, strict=True)
        for batch in group_by_budget(decoded, _audio_seconds, _MAX_BATCH_SECONDS, _MAX_BATCH_RECORDINGS):
            rows += self._prediction_rows(self._predictor, batch)
        return pa.Table.from_pylist(rows, schema=schema.bulk_predictions_schema(self._predictor.emotions))

    def _prediction_rows(self, predictor: Predictor, batch: Sequence[DecodedEntry]) -> Iterator[dict[str, Any]]:
        valid = [(entry, decoded) for entry, decoded in batch if isinstance(decoded, Recording)]
        results = predictor.predict_recordings(
            [recording for _, recording in valid],
            [PredictOptions(language=entry.language or self._language) for entry, _ in valid],
        )
        remaining = iter(results)
        for entry, decoded in batch:
            columns = {"id": entry.id, "path": entry.path}
            if isinstance(decoded, ClipError):
                yield {**columns, "status": "quarantined", "kind": decoded.kind, "reason": str(decoded)}
            else:
                yield {**columns, "status": "ok", **_result_columns(next(remaining))}


def _result_columns(result: EmotionResult) -> dict[str, Any]:
    values = result.model_dump(
        include={"emotion", "language", "language_probability", "duration_s", "model", "version"}
    )
    probabilities = {f"p_{emotion}": probability for emotion, probability in result.probabilities.items()}
    return {**values, **probabilities, "warnings": [warning.code for warning in result.warnings]}


def _audio_seconds(entry: DecodedEntry) -> float:
    _, decoded = entry
    return len(decoded.wave_T) / SAMPLE_RATE if isinstance(decoded, Recording) else 0.0
