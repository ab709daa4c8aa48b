"""Types of the outputs of a network, and constants of its language input.

Shape suffixes: B utterances, C classes, L languages, K teachers.
"""

from typing import NamedTuple

from torch import Tensor

LANGUAGE_AWARE_MODEL_TYPE = "lakd-language-aware"
"""The `model_type` of the language-aware student in transformers."""
IDENTIFY_LANGUAGE = -1
"""Stands for a language index that the network is to identify itself."""


class ClassifierOutput(NamedTuple):
    """The outputs of a network; None for those that its head does not compute."""

    logits_BC: Tensor
    language_logits_BL: Tensor | None = None
    """Logits of the language identifier of a language-aware student."""
    teacher_scores_BK: Tensor | None = None
    """Weight of each teacher before the softmax, for the weighting `attention`."""
