"""What the endpoint says, the same for the server that answers and the client that asks."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ResponseModel(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class InputWarning(ResponseModel):
    """Something about a recording that makes its answer less worth."""

    code: Literal["short", "clipped", "silent", "language"]
    """`short`: less than a second. `clipped`: recorded too loud. `silent`: hardly anything is heard. `language`: the
    model was not trained on the language that was given; it answers as for one that it does not know."""
    message: str
    """The same for people, with figures."""


class Segment(ResponseModel):
    """The emotion of a part of a recording, heard by itself."""

    start_s: float
    """Where it begins."""
    end_s: float
    """Where it ends."""
    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """As in the answer."""


class EmotionResult(ResponseModel):
    """The emotion of one recording."""

    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """Calibrated. All emotions in the order of the model's logits, which sum to 1, or the `top_k` most probable."""
    language: str | None
    """The language as it was given with the request, or as a language-aware student heard it; else null."""
    language_probability: float | None = None
    """How sure the student is of the language that it heard; null if it was given, or nothing listens for it."""
    duration_s: float
    """Length of the recording as decoded."""
    segments: tuple[Segment, ...] | None = None
    """The timeline, in order; null unless `window_s` asked for it."""
    warnings: tuple[InputWarning, ...] = ()
    """What was met on the way."""
    model: str
    """The model that answered."""
    version: str
    """Which weights of it: a short hash of the checkpoint."""


class BatchItem(ResponseModel):
    """One recording of a batch: its answer, or why there is none."""

    name: str
    """Its file name in the form."""
    status: int
    """What a request with this recording alone would have been answered with; 200 beside an answer."""
    result: EmotionResult | None = None
    """The answer."""
    error: str | None = None
    """Why there is none."""


class BatchResponse(ResponseModel):
    """The emotions of a batch of recordings."""

    items: tuple[BatchItem, ...]
    """In the order in which they were sent."""


class StreamResult(ResponseModel):
    """What a stream says: of its last `window_s` seconds while it goes on, of all that came at its end."""

    final: bool
    """Whether this is the last message, about everything that came (or its last `max_seconds`)."""
    start_s: float
    """Where the part begins, counted from the stream's first sample."""
    end_s: float
    """Where it ends."""
    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """Calibrated, all emotions."""
    language: str | None
    """As in an answer."""
    language_probability: float | None = None
    """As in an answer."""
    warnings: tuple[InputWarning, ...] = ()
    """As in an answer."""
    model: str
    """As in an answer."""
    version: str
    """As in an answer."""


class Prediction(ResponseModel):
    """What the model says of one recording."""

    probabilities: tuple[float, ...]
    """Calibrated, in the order of the card's emotions."""
    language: str | None = None
    """What a language-aware student heard."""
    language_probability: float | None = None
    """How sure it is of that."""


class ModelInfo(ResponseModel):
    """What is being served."""

    model: str
    """Name of the model."""
    version: str
    """Which weights of it: a short hash of the checkpoint."""
    emotions: tuple[str, ...]
    """Classes, in the order of the logits."""
    languages: tuple[str, ...]
    """Languages it was trained on."""
    identifiable_languages: tuple[str, ...] = ()
    """Languages that it tells apart by itself; empty if it does not listen for that."""
    corpora: tuple[str, ...] = ()
    """Corpora that it was trained on."""
    dev: dict[str, float] = {}
    """How its epoch did on dev: UR, WR, ece (after calibration), and UR of each language."""
    calibration_temperature: float = 1.0
    """Logits are divided by it before the softmax; fitted on dev."""


class ModelPredictions(ResponseModel):
    """What one model says of several recordings."""

    info: ModelInfo
    """The model's."""
    predictions: tuple[Prediction, ...]
    """In the order of the recordings."""


class ErrorResponse(ResponseModel):
    """Why there is no answer."""

    error: str
    """What was found, what was expected and what to change."""
