"""Answers as lines of a table for people, or as JSON lines."""

import json
from collections.abc import Sequence
from typing import Protocol

from lakd_ray.serve.answers import Answer

_WIDEST = 60  # of the column with file names


class Lines(Protocol):
    """How answers are shown."""

    header: Sequence[str]
    """Lines before the first file's."""

    def of(self, file: str, answer: Answer | None, error: str | None) -> list[str]:
        """The lines of one file."""


def lines(as_json: bool, emotions: Sequence[str], top_k: int | None, files: Sequence[str]) -> Lines:
    """The way of showing that was asked for; what is to come decides how wide columns are."""
    return JsonLines() if as_json else Table(emotions, top_k, files)


class JsonLines:
    """A JSON object a file: `file` with the fields of the answer, or `file` and `error`."""

    header: Sequence[str] = ()

    def of(self, file: str, answer: Answer | None, error: str | None) -> list[str]:
        """One line."""
        told = {"error": error} if answer is None else answer.model_dump(mode="json")
        return [json.dumps({"file": _spelt(file), **told}, ensure_ascii=False)]


class Table:
    """Columns for people; a timeline goes below its file.

    Args:
        emotions: those that may be said.
        top_k: how many of them are shown; the first alone if None.
        files: their names.
    """

    def __init__(self, emotions: Sequence[str], top_k: int | None, files: Sequence[str]):
        self._shown = min(top_k or 1, len(emotions))
        self._emotion = max(map(len, emotions))
        self._file = max(4, min(_WIDEST, max((len(_spelt(file)) for file in files), default=0)))
        self._all = self._shown * (self._emotion + 5) + 2 * (self._shown - 1)
        self.header: Sequence[str] = [
            f"{'file':<{self._file}}  {'emotion':<{self._all}}  {'language':<9}  {'seconds':>7}  notes".rstrip()
        ]

    def of(self, file: str, answer: Answer | None, error: str | None) -> list[str]:
        """A line for the file, and one for each segment."""
        name = f"{_spelt(file):<{self._file}}"
        if answer is None:
            return [f"{name}  no answer: {error}"]
        language = answer.language or "-"
        if answer.language_probability is not None:
            language += f" {answer.language_probability:.2f}"
        notes = "; ".join(remark.message for remark in answer.warnings)
        said = self._said(answer.probabilities)
        whole = f"{name}  {said}  {language:<9}  {answer.duration_s:7.2f}  {notes}".rstrip()
        parts = [
            f"{f'{part.start_s:.2f} - {part.end_s:.2f}':>{self._file}}  {self._said(part.probabilities)}".rstrip()
            for part in answer.segments or ()
        ]
        return [whole, *parts]

    def _said(self, probabilities: dict[str, float]) -> str:
        best = sorted(probabilities.items(), key=lambda item: -item[1])[: self._shown]
        return "  ".join(f"{f'{emotion} {share:.2f}':<{self._emotion + 5}}" for emotion, share in best)


def _spelt(file: str) -> str:
    """A name that can be printed, whatever bytes it is made of."""
    return file.encode(errors="surrogateescape").decode(errors="backslashreplace")
