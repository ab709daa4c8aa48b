"""A student network whose attention over frames and layers depends on the language of the utterance.

    h_l          hidden states of layer l (0: the transformer's input), normalized over channels
    e            the language's embedding, one more for UNKNOWN
    p_l          sum_f a_lf h_lf      a_l = softmax_f((K h_lf) . (Q e) / sqrt(A))      frames, for each layer separately
    u            sum_l b_l p_l        b = softmax_l(M e + m)                            layers
    logits       W2 gelu(W1 u)
    scores_k     (S [stop(u); e]) . t_k / sqrt(A)                                       teachers, t_k learned
    languages    V2 gelu(V1 stop(mean and deviation of h over frames, mean over layers)) identification

stop: no gradient flows back. The scores are trained by their own objective (`lakd_ray.distill.mixture_losses`). Without
`stop`, it would also train the encoder, for outputs that are easy to weight rather than accurate. The identification
loss does not reach the encoder either: better language separation does not necessarily help emotion recognition.
Statistics pooling (mean and standard deviation) is that of x-vectors (Snyder et al., ICASSP 2018): the mean alone
hardly separates languages.

It is a transformers model: importing this module registers it, and `AutoModelForAudioClassification.from_pretrained`
then loads it. Its `forward` takes waves prepared by transformers' feature extractor and `language_ids`, which are
indices in `config.languages`.

Shape suffixes: B utterances, T samples, Y layers, F frames, D hidden size, E embedding, A attention, P projection,
C classes, L languages, K teachers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from lakd_ray.models.backbone import backbone_class, make_backbone
from lakd_ray.models.masking import length_mask
from lakd_ray.models.outputs import IDENTIFY_LANGUAGE, LANGUAGE_AWARE_MODEL_TYPE, ClassifierOutput
from lakd_ray.precision import autocast_disabled, upcast, upcast_dtype


class LanguageAwareConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is half typed
    """Configuration of the backbone and of the language-aware head."""

    model_type = LANGUAGE_AWARE_MODEL_TYPE

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        languages: Sequence[str] = (),
        num_teachers: int = 0,
        embedding_size: int = 64,
        attention_size: int = 64,
        projection_size: int = 256,
        language_dropout: float = 0.2,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.languages = list(languages)
        self.num_teachers = num_teachers
        self.embedding_size = embedding_size
        self.attention_size = attention_size
        self.projection_size = projection_size
        self.language_dropout = language_dropout
        super().__init__(**kwargs)


class LanguageAwareHead(nn.Module):
    """Compute logits from the hidden states of every layer."""

    def __init__(self, config: LanguageAwareConfig, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        languages, E, A, P = len(config.languages), config.embedding_size, config.attention_size, config.projection_size
        self.language_dropout = config.language_dropout
        self.language = nn.Embedding(languages + 1, E)  # the last one is UNKNOWN
        self.frame_query, self.frame_key = nn.Linear(E, A), nn.Linear(hidden_size, A)
        self.layer_scores = nn.Linear(E, num_layers + 1)
        self.projector, self.classifier = nn.Linear(hidden_size, P), nn.Linear(P, config.num_labels)
        self.identifier = nn.Sequential(nn.Linear(2 * hidden_size, P), nn.GELU(), nn.Linear(P, languages))
        self.teacher_query = nn.Linear(hidden_size + E, A) if config.num_teachers else None
        self.teacher_keys = nn.Embedding(config.num_teachers, A) if config.num_teachers else None

    def forward(
        self, hidden_states: Sequence[Tensor], num_frames_B: Tensor, languages_B: Tensor | None
    ) -> ClassifierOutput:
        """Compute emotion logits, language logits and teacher scores.

        Args:
            hidden_states: the transformer's input and the output of each layer, [B, F, D] each.
            num_frames_B: each utterance's number of frames.
            languages_B: index of each utterance's language; len(languages) means UNKNOWN, and `IDENTIFY_LANGUAGE` means
                the identifier's prediction. If None, the prediction is used for all utterances.
        """
        hidden_BYFD = torch.stack([F.layer_norm(layer_BFD, layer_BFD.shape[-1:]) for layer_BFD in hidden_states], dim=1)
        frame_mask_BF = length_mask(hidden_BYFD.shape[2], num_frames_B)
        hidden_BYFD = hidden_BYFD.masked_fill(~frame_mask_BF[:, None, :, None], 0)
        language_logits_BL = self.identifier(pool_statistics(hidden_BYFD.detach(), frame_mask_BF))
        embedding_BE = self.language(self._resolve_languages(languages_B, language_logits_BL))
        pooled_BYD = self._pool_frames(hidden_BYFD, frame_mask_BF, embedding_BE)
        layer_weights_BY = F.softmax(upcast(self.layer_scores(embedding_BE)), dim=-1)
        utterance_BD = (layer_weights_BY.unsqueeze(-1) * pooled_BYD).sum(dim=1).to(pooled_BYD.dtype)
        logits_BC = self.classifier(F.gelu(self.projector(utterance_BD)))
        return ClassifierOutput(
            logits_BC, language_logits_BL, self._score_teachers(utterance_BD.detach(), embedding_BE)
        )

    def _resolve_languages(self, languages_B: Tensor | None, language_logits_BL: Tensor) -> Tensor:
        """Return the language index to use; in training some become UNKNOWN, so that its embedding is trained too."""
        identified_B = language_logits_BL.argmax(dim=-1)
        known_B = (
            identified_B
            if languages_B is None
            else torch.where(languages_B == IDENTIFY_LANGUAGE, identified_B, languages_B)
        )
        if not self.training:
            return known_B
        dropped_B = torch.rand(len(known_B), device=known_B.device) < self.language_dropout
        return known_B.masked_fill(dropped_B, self.language.num_embeddings - 1)

    def _pool_frames(self, hidden_BYFD: Tensor, frame_mask_BF: Tensor, embedding_BE: Tensor) -> Tensor:
        query_BA, key_BYFA = self.frame_query(embedding_BE), self.frame_key(hidden_BYFD)
        with autocast_disabled(hidden_BYFD.device):
            scores_BYF = torch.einsum("ba,byfa->byf", upcast(query_BA), upcast(key_BYFA)) / math.sqrt(
                query_BA.shape[-1]
            )
        frame_weights_BYF = F.softmax(scores_BYF.masked_fill(~frame_mask_BF.unsqueeze(1), float("-inf")), dim=-1)
        return torch.einsum("byf,byfd->byd", frame_weights_BYF.to(hidden_BYFD.dtype), hidden_BYFD)

    def _score_teachers(self, utterance_BD: Tensor, embedding_BE: Tensor) -> Tensor | None:
        if self.teacher_query is None or self.teacher_keys is None:
            return None
        query_BA = self.teacher_query(torch.cat([utterance_BD, embedding_BE], dim=-1))
        with autocast_disabled(query_BA.device):
            scores_BK: Tensor = upcast(query_BA) @ upcast(self.teacher_keys.weight).T / math.sqrt(query_BA.shape[-1])
        return scores_BK


def pool_statistics(hidden_BYFD: Tensor, frame_mask_BF: Tensor) -> Tensor:
    """Return mean and deviation over an utterance's frames, averaged over layers, [B, 2 D].

    They are computed in fp32 and have the dtype of the hidden states, whose frames of the padding must be 0.
    """
    count_B11 = frame_mask_BF.sum(dim=1).view(-1, 1, 1)
    mean_BYD = hidden_BYFD.sum(dim=2, dtype=upcast_dtype(hidden_BYFD)) / count_B11
    centered_BYFD = (hidden_BYFD - mean_BYD.unsqueeze(2)).masked_fill(~frame_mask_BF[:, None, :, None], 0)
    variance_BYD = centered_BYFD.square().sum(dim=2) / count_B11
    deviation_BYD = variance_BYD.clamp(min=1e-5).sqrt()
    return torch.cat([mean_BYD, deviation_BYD], dim=-1).mean(dim=1).to(hidden_BYFD.dtype)


class LanguageAwareForAudioClassification(PreTrainedModel):  # type: ignore[misc]  # transformers is half typed
    """A transformers model with the language-aware head on any backbone."""

    config_class = LanguageAwareConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"

    def __init__(self, config: LanguageAwareConfig) -> None:
        super().__init__(config)
        encoder_config = AutoConfig.for_model(**config.backbone)
        self.encoder = backbone_class(encoder_config.model_type).build_encoder(encoder_config)
        backbone = make_backbone(self.encoder)
        self.head = LanguageAwareHead(config, backbone.hidden_size, backbone.num_layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # transformers initializes all weights with a deviation of 0.02. A product of two such weights hardly changes
        # at fine-tuning rates, so that language embeddings and teacher scores would barely train. Embeddings therefore
        # have the scale of the normalized channels, and teacher scores start at zero, so that all teachers start with
        # equal weights.
        if isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=1.0)
        elif module is self.head.teacher_query:
            initialization.zeros_(module.weight)
            initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def freeze_feature_encoder(self) -> None:
        """Exclude the convolutional feature encoder from training."""
        for parameter in make_backbone(self.encoder).feature_encoder.parameters():
            parameter.requires_grad = False

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        language_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Compute logits and, if labels are given, the loss, with the signature of transformers' own heads.

        Args:
            input_values: waves, [B, T].
            attention_mask: ones where there is audio, [B, T]; all ones if None.
            language_ids: see `languages_B` of `LanguageAwareHead.forward`; identified if None.
            labels: class indices, [B], for the loss.
        """
        lengths_B = torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
        if attention_mask is not None:
            lengths_B = attention_mask.sum(dim=-1)
        backbone = make_backbone(self.encoder)
        num_frames_B = backbone.count_frames(lengths_B)
        spec_augment = None
        if self.training:
            seeds = torch.randint(2**62, (len(lengths_B), 1)).tolist()
            spec_augment = backbone.plan_spec_augment(num_frames_B.tolist(), seeds)
        hidden = backbone.encode(
            backbone.extract_features(input_values, lengths_B),
            num_frames_B,
            output_hidden_states=True,
            spec_augment=None if spec_augment is None else spec_augment.to(input_values.device),
        )
        logits_BC = self.head(hidden, num_frames_B, language_ids).logits_BC
        loss = None if labels is None else F.cross_entropy(logits_BC, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BC)


def add_language_aware_head(
    network: Any, *, languages: Sequence[str], num_teachers: int, **config_kwargs: Any
) -> PreTrainedModel:
    """Replace the head of a transformers network with a new language-aware head; the encoder's weights are unchanged.

    Args:
        network: a network with a plain head; its classes stay the same.
        languages: the languages that the head distinguishes.
        num_teachers: number of teachers to learn weights for; 0 disables the attention.
        config_kwargs: other fields of `LanguageAwareConfig`.
    """
    encoder: Any = make_backbone(network).encoder
    labels = {name: getattr(network.config, name) for name in ("id2label", "label2id")}
    shape = {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"}
    # Initialize the head with the deviation that transformers' own head on this backbone has.
    init = {"initializer_range": shape.get("initializer_range", shape.get("init_std", 0.02))}
    config = LanguageAwareConfig(
        backbone=shape, languages=languages, num_teachers=num_teachers, **init, **config_kwargs, **labels
    )
    aware = LanguageAwareForAudioClassification(config)
    aware.encoder = encoder
    return aware


AutoConfig.register(LanguageAwareConfig.model_type, LanguageAwareConfig)
AutoModelForAudioClassification.register(LanguageAwareConfig, LanguageAwareForAudioClassification)
