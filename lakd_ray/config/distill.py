"""Define the configuration section `distill`: students and losses; docs/explanation/method.md has the formulas."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from lakd_ray.config.base import Section
from lakd_ray.config.external_teachers import ExternalTeacherConfig

Paradigm = Literal["ft", "kd", "mtkd"]
Setup = Literal["monolingual", "multilingual"]
Weighting = Literal[
    "uniform", "similarity", "similarity-centered", "language", "confidence", "top1", "rank", "attention"
]

# Without cross-fitting they favor the teacher that has memorized the utterance.
_CROSS_FITTED_WEIGHTINGS = ("confidence", "top1", "rank", "attention")


class DistillLossConfig(Section):
    """The distillation term of the loss: loss = (1 - lam) CE + lam sum_k w_k KL_k."""

    temperature: float = Field(5.0, gt=0)
    """Temperature of the softmax of teacher and student."""
    lam: float = Field(1 / 13, ge=0, le=1)
    """Weight of the distillation term. 1/13 balances as the paper's 0.25 does with its four times smaller KL."""
    weighting: Weighting = "similarity"
    """Rule that weights the teachers for each utterance (mtkd only); docs/explanation/method.md explains each rule."""
    weighting_temperature: float = Field(0.25, gt=0)
    """tau: temperature of the softmax over teachers (`similarity`, `similarity-centered` and `confidence`)."""
    same_language_weight: float = Field(0.8, ge=0, le=1)
    """`language`: weight of the teacher of the utterance's language."""
    confidence_by: Literal["label", "entropy"] = "label"
    """`confidence`: measure of confidence, a teacher's probability of the label or its negative entropy."""
    attention_loss_weight: float = Field(1.0, gt=0)
    """`attention`: weight of the loss that trains the attention over teachers and the language embeddings."""
    entropy_weight: float = Field(0.1, ge=0)
    """`attention`: beta, weight of the entropy term that prevents a collapse onto one teacher."""
    standardize_logits: bool = False
    """Compare logits of zero mean and unit variance over classes, so that their scale is not distilled."""
    cross_fit: int | None = Field(None, ge=0)
    """Number of cross-fitting folds of a teacher's training speakers; logits of a fold come from a teacher trained on
    the others. 0: one teacher trained on all speakers; null: 3 for `confidence`, `top1`, `rank` and `attention`, 0 for
    the rest."""
    reference_compat: bool = False
    """Compute KL and weights exactly as the reference code does (mean over B*C, one set of weights a batch)."""

    @model_validator(mode="after")
    def _validate_loss(self) -> Self:
        if self.cross_fit == 1:
            raise ValueError("`cross_fit: 1` leaves no speaker to train on: set 2 or more, or 0 to disable it")
        if self.reference_compat and (self.weighting != "similarity" or self.standardize_logits):
            raise ValueError(
                "`reference_compat` is the reference code's own loss: leave weighting at similarity and "
                "standardize_logits at false, or set reference_compat: false"
            )
        return self

    @property
    def num_cross_fit_folds(self) -> int:
        """The number of cross-fitting folds, 0 without cross-fitting."""
        if self.cross_fit is None:
            return 3 if self.weighting in _CROSS_FITTED_WEIGHTINGS else 0
        return self.cross_fit


class DistillConfig(Section):
    """The students to train and their losses."""

    paradigms: tuple[Paradigm, ...] = ("ft", "kd", "mtkd")
    """ft: labels only; kd: one multilingual teacher; mtkd: one teacher per language."""
    setups: tuple[Setup, ...] = ("multilingual",)
    """monolingual: one student per language; multilingual: one student for all languages."""
    external_teachers: tuple[ExternalTeacherConfig, ...] = ()
    """Teachers that were not trained by this experiment, used by mtkd in addition to the experiment's own."""
    kd: DistillLossConfig = DistillLossConfig(lam=3 / 7)
    """Loss of paradigm kd. 3/7 balances as the paper's 0.75 does with its four times smaller KL."""
    mtkd: DistillLossConfig = DistillLossConfig()
    """Loss of paradigm mtkd."""

    @field_validator("paradigms", "setups")
    @classmethod
    def _validate_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("expected at least one name, each only once")
        return value

    @field_validator("external_teachers")
    @classmethod
    def _validate_teacher_names(cls, value: tuple[ExternalTeacherConfig, ...]) -> tuple[ExternalTeacherConfig, ...]:
        names = [teacher.name for teacher in value]
        if len(set(names)) != len(names):
            raise ValueError(f"names of external teachers must be unique, found {names}")
        return value
