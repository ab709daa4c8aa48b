"""The sections that say what a network is and how it is trained."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section
from lakd_ray.config.distill import LabelLossConfig


class LanguageAwareHeadConfig(Section):
    """The head of a language-aware student; docs/explanation/method.md has its formulas."""

    embedding_size: int = Field(64, ge=1)
    """Numbers that stand for a language."""
    attention_size: int = Field(64, ge=1)
    """Size of queries and keys."""
    projection_size: int = Field(256, ge=1)
    """Size between the utterance's vector and the logits."""
    language_dropout: float = Field(0.2, ge=0, lt=1)
    """Share of the training utterances whose language is hidden, so that it may be unknown later."""
    language_id_loss_weight: float = Field(0.1, gt=0)
    """Weight of the loss of language identification, which shapes its own head alone."""


class ModelConfig(Section):
    """A speech encoder with a classification head."""

    pretrained: str | None = None
    """Hub name or folder of a transformers checkpoint to start from."""
    revision: str | None = None
    """Hub revision to pin."""
    config: dict[str, Any] | None = None
    """For a random start: a transformers configuration, `model_type` included."""
    freeze_feature_encoder: bool = True
    """Leave the convolutional feature encoder as it is, as the paper does."""
    freeze_encoder: bool = False
    """Leave the whole encoder as it is, its dropout off, and train the head alone: a probe."""
    num_layers: int | None = Field(None, ge=1)
    """Keep so many transformer layers of `pretrained`, spread evenly from its first to its last; null: all."""
    language_aware: LanguageAwareHeadConfig | None = None
    """Give it a head that goes by the language, for students; null: transformers' plain head."""

    @model_validator(mode="after")
    def _validate_model(self) -> Self:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("give either `pretrained` or `config`, not both and not neither")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for instance wav2vec2")
        if self.config is not None and self.num_layers is not None:
            raise ValueError("`num_layers` chooses among those of `pretrained`: give `config` fewer instead")
        if self.config is not None and (self.freeze_feature_encoder or self.freeze_encoder):
            raise ValueError(
                "a randomly started encoder must be trained: set freeze_feature_encoder: false, freeze_encoder: false"
            )
        return self


class OptimConfig(Section):
    """AdamW and its schedule."""

    epochs: int = Field(20, ge=1)
    """Passes over the training split."""
    lr: float = Field(3e-5, gt=0)
    """Peak learning rate."""
    head_lr: float | None = Field(None, gt=0)
    """Peak rate of the head, which starts afresh; null: as all."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's averaging coefficients."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of all steps over which the rate rises linearly from zero."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate goes on after warm-up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of a running average of the weights, which dev judges and checkpoints hold; 0: none. 0.999 is usual."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Epochs without a better UR on dev after which the run ends; null: all epochs are trained."""


class Recipe(Section):
    """A model and how it is trained."""

    model: ModelConfig
    """The network."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    label_loss: LabelLossConfig = LabelLossConfig()
    """The loss against the labels; a student's distillation term comes on top."""
