"""Define the configuration section `model` of teachers and students: the speech encoder and its classification head."""

from typing import Any, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section


class LanguageAwareHeadConfig(Section):
    """The head of a language-aware student; docs/explanation/method.md has its formulas."""

    embedding_size: int = Field(64, ge=1)
    """Size of a language embedding."""
    attention_size: int = Field(64, ge=1)
    """Size of the attention queries and keys."""
    projection_size: int = Field(256, ge=1)
    """Size of the hidden layer between the utterance vector and the logits."""
    language_dropout: float = Field(0.2, ge=0, lt=1)
    """Fraction of training utterances whose language is hidden, so that inference works without a language."""
    language_id_loss_weight: float = Field(0.1, gt=0)
    """Weight of the language identification loss, which trains the language identification head only."""


class ModelConfig(Section):
    """A speech encoder with a classification head."""

    pretrained: str | None = None
    """Hub name, folder or s3:// location of a transformers checkpoint to start from; each node copies one from a bucket
    once, into HF_HOME. The final layer of a classifier is used for the
    emotions that it has by the same name, an abbreviation or an adjective (`ang`, `angry`); the log lists them."""
    revision: str | None = None
    """Revision of the hub repository to pin."""
    trained_on: tuple[str, ...] | None = None
    """Corpora of this experiment, or speakers (`corpus:speaker`), that `pretrained` was trained or selected on; [] for
    none. null: the list of known models, or unknown, and every affected table states so. A checkpoint of this project
    has its own record, to which this adds."""
    config: dict[str, Any] | None = None
    """A transformers configuration with `model_type`, for a randomly initialized encoder in place of `pretrained`."""
    freeze_feature_encoder: bool = True
    """Do not train the convolutional feature encoder, as in the paper."""
    freeze_encoder: bool = False
    """Do not train the encoder, switch its dropout off, and train the head only (a linear probe)."""
    num_layers: int | None = Field(None, ge=1)
    """Number of transformer layers of `pretrained` to use, spaced evenly from its first to its last; null: all."""
    language_aware: LanguageAwareHeadConfig | None = None
    """Language-aware head of a student; null: the plain head of transformers."""

    @model_validator(mode="after")
    def _validate_model(self) -> Self:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("expected either `pretrained` or `config`, found both or neither")
        if self.config is not None and self.trained_on is not None:
            raise ValueError("`trained_on` is about `pretrained`: leave it out, random weights are trained on nothing")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for instance wav2vec2")
        if self.config is not None and self.num_layers is not None:
            raise ValueError(
                "`num_layers` selects layers of `pretrained`: leave it out, and set num_hidden_layers in `config`"
            )
        if self.config is not None and (self.freeze_feature_encoder or self.freeze_encoder):
            raise ValueError(
                "a randomly initialized encoder must be trained: set freeze_feature_encoder: false and "
                "freeze_encoder: false"
            )
        return self
