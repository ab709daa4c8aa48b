"""Answers as lines of a table for people, or as JSON lines."""

import json
from collections.abc import Sequence
from typing import Protocol

from lakd_ray.inference.results import EmotionResult

_MAX_FILE_WIDTH = 60  # of the column with file names


class Formatter(Protocol):
    """How answers are shown."""

    header: Sequence[str]
    """Lines before the first file's."""

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """The lines of one file."""


def make_formatter(as_json: bool, emotions: Sequence[str], top_k: int | None, files: Sequence[str]) -> Formatter:
    """The way of showing that was asked for; what is to come decides how wide columns are."""
    return JsonLinesFormatter() if as_json else TableFormatter(emotions, top_k, files)


class JsonLinesFormatter:
    """A JSON object a file: `file` with the fields of the answer, or `file` and `error`."""

    header: Sequence[str] = ()

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """One line."""
        told = {"error": error} if prediction is None else prediction.model_dump(mode="json")
        return [json.dumps({"file": _printable(file), **told}, ensure_ascii=False)]


class TableFormatter:
    """Columns for people; a timeline goes below its file.

    Args:
        emotions: those that may be said.
        top_k: how many of them are shown; the first alone if None.
        files: their names.
    """

    def __init__(self, emotions: Sequence[str], top_k: int | None, files: Sequence[str]):
        self._top_k = min(top_k or 1, len(emotions))
        self._emotion_width = max(map(len, emotions))
        self._file_width = max(4, min(_MAX_FILE_WIDTH, max((len(_printable(file)) for file in files), default=0)))
        self._emotions_width = self._top_k * (self._emotion_width + 5) + 2 * (self._top_k - 1)
        self.header: Sequence[str] = [
            f"{'file':<{self._file_width}}  {'emotion':<{self._emotions_width}}  {'language':<9}  {'seconds':>7}  notes".rstrip()
        ]

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """A line for the file, and one for each segment."""
        name = f"{_printable(file):<{self._file_width}}"
        if prediction is None:
            return [f"{name}  no answer: {error}"]
        language = prediction.language or "-"
        if prediction.language_probability is not None:
            language += f" {prediction.language_probability:.2f}"
        notes = "; ".join(remark.message for remark in prediction.warnings)
        said = self._format_probabilities(prediction.probabilities)
        whole = f"{name}  {said}  {language:<9}  {prediction.duration_s:7.2f}  {notes}".rstrip()
        parts = [
            f"{f'{part.start_s:.2f} - {part.end_s:.2f}':>{self._file_width}}  {self._format_probabilities(part.probabilities)}".rstrip()
            for part in prediction.segments or ()
        ]
        return [whole, *parts]

    def _format_probabilities(self, probabilities: dict[str, float]) -> str:
        best = sorted(probabilities.items(), key=lambda item: -item[1])[: self._top_k]
        return "  ".join(f"{f'{emotion} {share:.2f}':<{self._emotion_width + 5}}" for emotion, share in best)


def _printable(file: str) -> str:
    """A name that can be printed, whatever bytes it is made of."""
    return file.encode(errors="surrogateescape").decode(errors="backslashreplace")
