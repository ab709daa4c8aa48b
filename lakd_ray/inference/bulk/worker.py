"""Answers one part of a bulk prediction after another. Ray Data calls it, and it knows nothing of that."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Recording
from lakd_ray.config import Backend
from lakd_ray.data import schema
from lakd_ray.errors import ClipError, LakdError
from lakd_ray.inference.bulk.inputs import InputEntry
from lakd_ray.inference.bulk.prefetch import PrefetchingDecoder
from lakd_ray.inference.predictor import Predictor
from lakd_ray.inference.recordings import PredictOptions
from lakd_ray.inference.results import EmotionResult

_MAX_BATCH_SECONDS = 240.0  # seconds of audio that the model is asked about at once; it sorts them by length
_MAX_BATCH_RECORDINGS = 64

DecodedEntry = tuple[InputEntry, Recording | ClipError]


class BulkWorker:
    """An actor: holds the model, and answers a part for each row that it is called with.

    Args:
        model: checkpoint folder.
        cpus: torch's threads, and processes that decode.
        language: of recordings whose manifest has none; None if it is to be heard, or is not known.
        max_seconds: longer recordings are quarantined.
        backend: what computes.
    """

    def __init__(
        self, checkpoint: str, cpus: int, language: str | None, max_seconds: float, backend: Backend = "torch"
    ):
        self._checkpoint, self._cpus, self._language, self._backend = checkpoint, cpus, language, backend
        self._decoder = PrefetchingDecoder(cpus, max_seconds)  # for all parts: its processes take a while to start
        self._predictor: Predictor | None = None

    def close(self) -> None:
        """End the processes that decode; they end by themselves when this one does."""
        self._decoder.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `part` (where it goes) and `entries` (JSON) in; the `error` of each out, empty if it was written."""
        errors = []
        for row in table.to_pylist():
            entries = [InputEntry(*values) for values in json.loads(row["entries"])]
            try:
                storage.write_table(row["part"], self.predict_part(entries))
                errors.append("")
            except LakdError as error:  # raised, it would reach people as a traceback through Ray
                errors.append(str(error))
        return pa.table({"part": table["part"], "error": pa.array(errors, pa.string())})

    def predict_part(self, entries: Sequence[InputEntry]) -> pa.Table:
        """The rows of a part (`lakd_ray.data.schema.answers`), in the order of its entries.

        Raises:
            StorageError, CheckpointError, ConfigError: the model cannot be loaded, or the backend cannot be had here.
        """
        if self._predictor is None:  # not earlier: an actor that cannot be made would be made again and again
            self._predictor = Predictor.load(self._checkpoint, threads=self._cpus, backend=self._backend)
        rows: list[dict[str, Any]] = []
        opened = self._decoder.iter_recordings([entry.path for entry in entries])
        for some in _batches(zip(entries, opened, strict=True)):
            rows += self._prediction_rows(self._predictor, some)
        return pa.Table.from_pylist(rows, schema=schema.bulk_predictions_schema(self._predictor.emotions))

    def _prediction_rows(self, predictor: Predictor, batch: Sequence[DecodedEntry]) -> Iterator[dict[str, Any]]:
        recordings = [decoded for _, decoded in batch if isinstance(decoded, Recording)]
        options = [
            PredictOptions(language=entry.language or self._language)
            for entry, decoded in batch
            if isinstance(decoded, Recording)
        ]
        answers = iter(predictor.predict_recordings(recordings, options))
        for entry, one in batch:
            named = {"id": entry.id, "path": entry.path}
            if isinstance(one, ClipError):
                yield {**named, "status": "quarantined", "kind": one.kind, "reason": str(one)}
            else:
                yield {**named, "status": "ok", **_result_columns(next(answers))}


def _result_columns(result: EmotionResult) -> dict[str, Any]:
    values = result.model_dump(
        include={"emotion", "language", "language_probability", "duration_s", "model", "version"}
    )
    shares = {f"p_{emotion}": share for emotion, share in result.probabilities.items()}
    return {**values, **shares, "warnings": [remark.code for remark in result.warnings]}


def _batches(decoded: Iterable[DecodedEntry]) -> Iterator[list[DecodedEntry]]:
    """Recordings that the model is asked about at once."""
    some: list[DecodedEntry] = []
    seconds = 0.0
    for entry, one in decoded:
        more = len(one.wave_T) / SAMPLE_RATE if isinstance(one, Recording) else 0.0
        if some and (seconds + more > _MAX_BATCH_SECONDS or len(some) == _MAX_BATCH_RECORDINGS):
            yield some
            some, seconds = [], 0.0
        some.append((entry, one))
        seconds += more
    if some:
        yield some
