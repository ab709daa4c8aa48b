"""The sections that say what is minimised; docs/explanation/method.md has the formulas."""

from typing import Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section

Weighting = Literal[
    "uniform", "similarity", "similarity-centered", "language", "confidence", "top1", "rank", "attention"
]

# They would find that a teacher is surest of what it has memorised.
_CROSS_FITTED_WEIGHTINGS = ("confidence", "top1", "rank", "attention")


class LabelLossConfig(Section):
    """The loss against the labels: w (1 - p)^gamma (-log p), p the probability of the label."""

    class_balance: float = Field(0.0, ge=0, le=1)
    """b of the classes' weights (1 - b) / (1 - b^n), n the training utterances. 0: all alike; 1: by 1 / n."""
    focal_gamma: float = Field(0.0, ge=0)
    """gamma: how much less an utterance counts the better it is known; 2 in the source, 0 not at all."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the label's probability that is spread over all classes."""

    @model_validator(mode="after")
    def _validate_focal_gamma(self) -> Self:
        if self.focal_gamma and self.label_smoothing:
            raise ValueError("focal loss is not defined for smoothed labels: set focal_gamma or label_smoothing to 0")
        return self


class DistillLossConfig(Section):
    """The distillation term: loss = (1 - lam) CE + lam sum_k w_k KL_k."""

    temperature: float = Field(5.0, gt=0)
    """Softens teacher and student probabilities."""
    lam: float = Field(1 / 13, ge=0, le=1)
    """Share of the distillation term. 1/13 balances as the paper's 0.25 does with its four times smaller KL."""
    weighting: Weighting = "similarity"
    """How the teachers are weighted for each utterance (mtkd only); docs/explanation/method.md explains each."""
    weighting_temperature: float = Field(0.25, gt=0)
    """Temperature of the softmax over teachers (`similarity`, `similarity-centered` and `confidence`)."""
    same_language_weight: float = Field(0.8, ge=0, le=1)
    """`language`: share of the teacher of the utterance's language."""
    confidence_by: Literal["label", "entropy"] = "label"
    """`confidence`: go by the probability that a teacher gives the label, or by how low its entropy is."""
    attention_loss_weight: float = Field(1.0, gt=0)
    """`attention`: weight of the loss that the weights are learned by; it shapes them and what stands for languages."""
    entropy_weight: float = Field(0.1, ge=0)
    """`attention`: beta, how much the weights are kept from collapsing onto one teacher."""
    standardize_logits: bool = False
    """Compare logits of zero mean and unit variance over classes; their size is then not distilled."""
    cross_fit: int | None = Field(None, ge=0)
    """Parts of a teacher's training speakers, each asked of a teacher trained on the others. 0: the teacher that was
    trained on all is asked; null: 3 for weightings that go by certainty, by the label or are learned, else 0."""
    reference_compat: bool = False
    """Compute KL and weights exactly as the reference code does (mean over B*C, one set of weights a batch)."""

    @model_validator(mode="after")
    def _validate_loss(self) -> Self:
        if self.cross_fit == 1:
            raise ValueError("`cross_fit: 1` leaves no speaker to train on: give 2 or more, or 0 for none")
        if self.reference_compat and (self.weighting != "similarity" or self.standardize_logits):
            raise ValueError(
                "`reference_compat` is the reference code's own loss: leave weighting at similarity and standardize_logits at "
                "false, or set reference_compat: false"
            )
        return self

    @property
    def num_cross_fit_folds(self) -> int:
        """Parts of cross-fitting, 0 for none."""
        if self.cross_fit is None:
            return 3 if self.weighting in _CROSS_FITTED_WEIGHTINGS else 0
        return self.cross_fit
