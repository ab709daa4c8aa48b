"""Options of a prediction and their ranges, which the endpoint, the command line and `Predictor` share."""

import re
from dataclasses import dataclass

from lakd_ray.errors import ConfigError

LANGUAGE_PATTERN = "^[a-z]{2,3}$"
MIN_WINDOW_S = 0.25
MIN_HOP_S = 0.05
MAX_SEGMENT_S = 60.0  # maximum of window and hop


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction, the same for the endpoint, the command line and `Predictor.predict`.

    Raises:
        ConfigError: a value is out of range.
    """

    language: str | None = None
    """Language of the recording (`en`, `de`), where it is known."""
    window_s: float | None = None
    """Length of a timeline's segments in seconds; no timeline if None."""
    hop_s: float | None = None
    """Seconds from the start of a segment to the start of the next; `window_s` if None."""
    top_k: int | None = None
    """Return only the K most probable emotions; all of them, in the order of the logits, if None."""

    def __post_init__(self) -> None:
        if self.language is not None and not re.fullmatch(LANGUAGE_PATTERN, self.language):
            raise ConfigError(f"language {self.language!r}: expected a code of two or three letters, such as en")
        for name, value, minimum in (("window", self.window_s, MIN_WINDOW_S), ("hop", self.hop_s, MIN_HOP_S)):
            if value is not None and not minimum <= value <= MAX_SEGMENT_S:
                raise ConfigError(f"{name} of {value:g} s: expected {minimum:g} to {MAX_SEGMENT_S:g} s")
        if self.hop_s is not None and self.window_s is None:
            raise ConfigError("a hop without a window: give the length of the timeline's segments too")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"the {self.top_k} most probable emotions: expected 1 or more")
