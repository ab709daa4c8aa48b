"""Messages of the HTTP API that only the endpoint and its clients use; results are in `lakd_ray.inference.results`."""

from lakd_ray.inference.results import EmotionResult, InputWarning, ResponseModel


class BatchItem(ResponseModel):
    """The result of one recording of a batch, or the error in its place."""

    name: str
    """File name in the form."""
    status: int
    """HTTP status that a request with this recording alone would have; 200 with a result."""
    result: EmotionResult | None = None
    """The result; null after an error."""
    error: str | None = None
    """The error message; null with a result."""


class BatchResponse(ResponseModel):
    """The emotions of a batch of recordings."""

    items: tuple[BatchItem, ...]
    """In the order of the request."""


class StreamResult(ResponseModel):
    """A result of a stream: of its last `window_s` seconds while it runs, of all audio at its end."""

    final: bool
    """Whether this is the last message, about all audio received (or its last `max_seconds`)."""
    start_s: float
    """Start of the part in seconds since the stream's first sample."""
    end_s: float
    """End of the part."""
    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """Calibrated, all emotions."""
    language: str | None
    """As in `EmotionResult`."""
    language_probability: float | None = None
    """As in `EmotionResult`."""
    warnings: tuple[InputWarning, ...] = ()
    """As in `EmotionResult`."""
    model: str
    """As in `EmotionResult`."""
    version: str
    """As in `EmotionResult`."""


class ErrorResponse(ResponseModel):
    """The body of every response that is not a result."""

    error: str
    """What was found, what was expected and what to change."""
