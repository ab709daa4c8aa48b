"""What a network answers.

Shape suffixes: B utterances, C classes, L languages, K teachers.
"""

from typing import NamedTuple

from torch import Tensor

LANGUAGE_AWARE_MODEL_TYPE = "lakd-language-aware"
"""transformers' model_type of the language-aware student."""
IDENTIFY_LANGUAGE = -1
"""In place of a language's position: the one that the network hears."""


class ClassifierOutput(NamedTuple):
    """A network's answer; what its head does not have is None."""

    logits_BC: Tensor
    language_logits_BL: Tensor | None = None
    """Of a language-aware student's identifier."""
    teacher_scores_BK: Tensor | None = None
    """How much each teacher is to count, before a softmax, for weighting `attention`."""
