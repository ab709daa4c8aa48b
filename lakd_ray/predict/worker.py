"""Answers one part of a bulk prediction after another. Ray Data calls it, and it knows nothing of that."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from lakd_ray import schema, storage
from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.config import Backend
from lakd_ray.errors import ClipError, LakdError
from lakd_ray.infer.predictor import Predictor
from lakd_ray.predict.inputs import Entry
from lakd_ray.predict.opening import Opener
from lakd_ray.serve.answering import answer, describe, predictions
from lakd_ray.serve.answers import Answer, ModelCard, Said

_TOGETHER_S = 240.0  # seconds of audio that the model is asked about at once; it sorts them by length
_TOGETHER = 64

Opened = tuple[Entry, Recording | ClipError]


class Worker:
    """An actor: holds the model, and answers a part for each row that it is called with.

    Args:
        model: checkpoint folder.
        cpus: torch's threads, and processes that decode.
        language: of recordings whose manifest has none; None if it is to be heard, or is not known.
        max_seconds: longer recordings are quarantined.
        backend: what computes.
    """

    def __init__(self, model: str, cpus: int, language: str | None, max_seconds: float, backend: Backend = "torch"):
        self._folder, self._cpus, self._language, self._backend = model, cpus, language, backend
        self._opener = Opener(cpus, max_seconds)  # for all parts: its processes take a while to start
        self._predictor: Predictor | None = None

    def close(self) -> None:
        """End the processes that decode; they end by themselves when this one does."""
        self._opener.close()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `part` (where it goes) and `entries` (JSON) in; the `error` of each out, empty if it was written."""
        errors = []
        for row in table.to_pylist():
            entries = [Entry(*values) for values in json.loads(row["entries"])]
            try:
                storage.write_table(row["part"], self.answered(entries))
                errors.append("")
            except LakdError as error:  # raised, it would reach people as a traceback through Ray
                errors.append(str(error))
        return pa.table({"part": table["part"], "error": pa.array(errors, pa.string())})

    def answered(self, entries: Sequence[Entry]) -> pa.Table:
        """The rows of a part (`lakd_ray.schema.answers`), in the order of its entries.

        Raises:
            StorageError, CheckpointError, ConfigError: the model cannot be loaded, or the backend cannot be had here.
        """
        if self._predictor is None:  # not earlier: an actor that cannot be made would be made again and again
            self._predictor = Predictor.load(self._folder, threads=self._cpus, backend=self._backend)
        rows: list[dict[str, Any]] = []
        opened = self._opener.open([entry.path for entry in entries])
        for some in _together(zip(entries, opened, strict=True)):
            rows += self._rows(self._predictor, some)
        return pa.Table.from_pylist(rows, schema=schema.answers(self._predictor.emotions))

    def _rows(self, predictor: Predictor, some: Sequence[Opened]) -> Iterator[dict[str, Any]]:
        asked = [(one, entry.language or self._language) for entry, one in some if isinstance(one, Recording)]
        answers = iter(answer_all(predictor, asked))
        for entry, one in some:
            named = {"id": entry.id, "path": entry.path}
            if isinstance(one, ClipError):
                yield {**named, "status": "quarantined", "kind": one.kind, "reason": str(one)}
            else:
                yield {**named, "status": "answered", **_columns(next(answers))}


def _columns(told: Answer) -> dict[str, Any]:
    values = told.model_dump(include={"emotion", "language", "language_probability", "duration_s", "model", "version"})
    shares = {f"p_{emotion}": share for emotion, share in told.probabilities.items()}
    return {**values, **shares, "warnings": [remark.code for remark in told.warnings]}


def _together(opened: Iterable[Opened]) -> Iterator[list[Opened]]:
    """Recordings that the model is asked about at once."""
    some: list[Opened] = []
    seconds = 0.0
    for entry, one in opened:
        more = len(one.wave_T) / SAMPLE_RATE if isinstance(one, Recording) else 0.0
        if some and (seconds + more > _TOGETHER_S or len(some) == _TOGETHER):
            yield some
            some, seconds = [], 0.0
        some.append((entry, one))
        seconds += more
    if some:
        yield some


def answer_all(predictor: Predictor, asked: Sequence[tuple[Recording, str | None]]) -> list[Answer]:
    """The answers to recordings, each with its language: what the endpoint says of each, from few forward passes."""

    async def all_of_them() -> list[Answer]:
        model = _AtOnce(predictor)
        return await asyncio.gather(*[answer(model, recording, language=language) for recording, language in asked])

    return asyncio.run(all_of_them())


class _AtOnce:
    """A predictor that waits until everybody has asked."""

    def __init__(self, predictor: Predictor):
        self._predictor, self._card = predictor, describe(predictor)
        self._asked: list[tuple[Sequence[Wave], str | None, asyncio.Future[Said]]] = []

    async def card(self) -> ModelCard:
        """What it is."""
        return self._card

    async def predict(self, waves: Sequence[Wave], language: str | None) -> Said:
        """What it says of recordings."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._answer)  # after those who are about to ask
        coming: asyncio.Future[Said] = loop.create_future()
        self._asked.append((waves, language, coming))
        return await coming

    def _answer(self) -> None:
        asked, self._asked = self._asked, []
        waves = [wave_T for some, _, _ in asked for wave_T in some]
        languages = [language for some, language, _ in asked for _ in some]
        try:
            said = iter(predictions(self._predictor, waves, languages) if waves else [])
        except Exception as error:  # noqa: BLE001 -- theirs who wait
            for _, _, coming in asked:
                coming.set_exception(error)
            return
        for some, _, coming in asked:
            coming.set_result(Said(card=self._card, predictions=tuple(next(said) for _ in some)))
