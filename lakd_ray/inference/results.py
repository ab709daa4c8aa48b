"""Results and model information, as the endpoint sends them and `Predictor.predict` returns them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ResponseModel(BaseModel):
    """Base of all JSON responses: immutable, without NaN or infinity."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class InputWarning(ResponseModel):
    """A property of a recording that makes its result less reliable."""

    code: Literal["short", "clipped", "silent", "channels", "language"]
    """`short`: less than a second. `clipped`: recorded at too high a level. `silent`: almost no sound. `channels`:
    the channels cancel each other out, and only one of them was used. `language`: the model was not trained on the
    given language, and treats it as unknown."""
    message: str
    """Human-readable text, with figures."""


class Segment(ResponseModel):
    """The emotion of one part of a recording, predicted from that part alone."""

    start_s: float
    """Start in seconds."""
    end_s: float
    """End in seconds."""
    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """As in `EmotionResult`."""


class EmotionResult(ResponseModel):
    """The emotion of one recording."""

    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """Calibrated. All emotions in the order of the model's logits, which sum to 1, or the `top_k` most probable."""
    language: str | None
    """The language given with the request, or the one that a language-aware student identified; else null."""
    language_probability: float | None = None
    """Probability of the identified language; null if the language was given or the model does not identify it."""
    duration_s: float
    """Length of the recording as decoded."""
    segments: tuple[Segment, ...] | None = None
    """The timeline, in order; null without `window_s`."""
    warnings: tuple[InputWarning, ...] = ()
    """Properties of the recording that make the result less reliable."""
    model: str
    """Name of the model."""
    version: str
    """Version of its weights: a short hash of the checkpoint."""


class Prediction(ResponseModel):
    """The model's output for one wave."""

    probabilities: tuple[float, ...]
    """Calibrated, in the order of `ModelInfo.emotions`."""
    language: str | None = None
    """The language that a language-aware student identified."""
    language_probability: float | None = None
    """Its probability."""


class ModelInfo(ResponseModel):
    """The model that is served or loaded."""

    model: str
    """Name of the model."""
    version: str
    """Version of its weights: a short hash of the checkpoint."""
    emotions: tuple[str, ...]
    """Classes, in the order of the logits."""
    languages: tuple[str, ...]
    """Languages it was trained on."""
    identifiable_languages: tuple[str, ...] = ()
    """Languages that it identifies itself; empty if it does not identify languages."""
    corpora: tuple[str, ...] = ()
    """Corpora it was trained on."""
    datasets: tuple[str, ...] = ()
    """Public datasets that it, its teachers or its initial weights were trained on."""
    undisclosed_models: tuple[str, ...] = ()
    """Models that it started or learned from and whose training data is not known."""
    dev: dict[str, float] = {}
    """Metrics of its epoch on dev: UR, WR, ece (with the temperature fitted on other speakers), UR of each language."""
    calibration_temperature: float = 1.0
    """Logits are divided by it before the softmax; fitted on dev."""


class ModelPredictions(ResponseModel):
    """Predictions of one model for several waves."""

    info: ModelInfo
    """The model."""
    predictions: tuple[Prediction, ...]
    """In the order of the waves."""
