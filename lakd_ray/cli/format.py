"""Formats predictions as lines of a table, or as JSON lines."""

import json
from collections.abc import Sequence
from typing import Protocol

from lakd_ray.escaping import for_line, for_terminal
from lakd_ray.inference.results import EmotionResult, Segment

_MAX_FILE_WIDTH = 60  # characters of the column with file names


class Formatter(Protocol):
    """Formats the results of files as lines."""

    header: Sequence[str]
    """Lines before those of the first file."""

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """Return the lines of one file."""


def make_formatter(as_json: bool, emotions: Sequence[str], top_k: int | None, files: Sequence[str]) -> Formatter:
    """Return the formatter; the names of all files determine the widths of a table's columns."""
    return JsonLinesFormatter() if as_json else TableFormatter(emotions, top_k, files)


class JsonLinesFormatter:
    """Formats each file as a JSON object: `file` with the fields of the prediction, or `file` and `error`."""

    header: Sequence[str] = ()

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """Return one line with the JSON object of the file."""
        fields = {"error": error} if prediction is None else prediction.model_dump(mode="json")
        name = file.encode(errors="surrogateescape").decode(errors="backslashreplace")
        return [for_terminal(json.dumps({"file": name, **fields}, ensure_ascii=False))]


class TableFormatter:
    """Formats results as a table; the segments of a timeline follow the line of their file.

    Args:
        emotions: classes of the model.
        top_k: number of emotions that are shown; only the most probable if None.
        files: names of all files.
    """

    def __init__(self, emotions: Sequence[str], top_k: int | None, files: Sequence[str]):
        self._top_k = min(top_k or 1, len(emotions))
        self._emotion_width = max(map(len, emotions))
        self._file_width = max(4, min(_MAX_FILE_WIDTH, max((len(_printable(file)) for file in files), default=0)))
        self._emotions_width = self._top_k * (self._emotion_width + 5) + 2 * (self._top_k - 1)
        self.header: Sequence[str] = [
            f"{'file':<{self._file_width}}  {'emotion':<{self._emotions_width}}  {'language':<9}  {'seconds':>7}  notes"
        ]

    def format_result(self, file: str, prediction: EmotionResult | None, error: str | None) -> list[str]:
        """Return a line for the file, and one for each segment."""
        name = f"{_printable(file):<{self._file_width}}"
        if prediction is None:
            return [f"{name}  error: {for_line(error or '')}"]
        language = for_line(prediction.language or "-")
        if prediction.language_probability is not None:
            language += f" {prediction.language_probability:.2f}"
        notes = for_line("; ".join(remark.message for remark in prediction.warnings))
        emotions = self._format_probabilities(prediction.probabilities)
        line = f"{name}  {emotions}  {language:<9}  {prediction.duration_s:7.2f}  {notes}".rstrip()
        return [line, *(self._format_segment(segment) for segment in prediction.segments or ())]

    def _format_segment(self, segment: Segment) -> str:
        times = f"{segment.start_s:.2f} - {segment.end_s:.2f}"
        return f"{times:>{self._file_width}}  {self._format_probabilities(segment.probabilities)}".rstrip()

    def _format_probabilities(self, probabilities: dict[str, float]) -> str:
        best = sorted(probabilities.items(), key=lambda item: -item[1])[: self._top_k]
        return "  ".join(f"{f'{for_line(emotion)} {share:.2f}':<{self._emotion_width + 5}}" for emotion, share in best)


def _printable(file: str) -> str:
    """Return a printable form of a file name, which may contain any bytes."""
    return for_line(file.encode(errors="surrogateescape").decode(errors="backslashreplace"))
