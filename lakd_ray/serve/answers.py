"""What the endpoint says, the same for the server that answers and the client that asks."""

from pydantic import BaseModel, ConfigDict


class Message(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Answer(Message):
    """The emotion of one recording."""

    emotion: str
    """The most probable emotion."""
    probabilities: dict[str, float]
    """Every emotion the model knows, in the order of its logits; they sum to 1."""
    language: str | None
    """The language as it was given with the request, or as a language-aware student heard it; else null."""
    language_probability: float | None = None
    """How sure the student is of the language that it heard; null if it was given, or nothing listens for it."""
    duration_s: float
    """Length of the recording as decoded."""
    model: str
    """The checkpoint that answered."""


class Prediction(Message):
    """What the model says of one recording."""

    probabilities: tuple[float, ...]
    """In the order of the card's emotions."""
    language: str | None = None
    """What a language-aware student heard."""
    language_probability: float | None = None
    """How sure it is of that."""


class ModelCard(Message):
    """What is being served."""

    model: str
    """The checkpoint."""
    emotions: tuple[str, ...]
    """Classes, in the order of the logits."""
    languages: tuple[str, ...]
    """Languages it was trained on, the values that `language` accepts."""


class Problem(Message):
    """Why there is no answer."""

    error: str
    """What was found, what was expected and what to change."""
