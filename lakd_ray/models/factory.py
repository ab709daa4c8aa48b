"""Build networks from the model section of an experiment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lakd_ray.config import ModelConfig
from lakd_ray.errors import ConfigError
from lakd_ray.models import pretrained
from lakd_ray.models.backbone import make_backbone
from lakd_ray.models.classifier import EmotionClassifier
from lakd_ray.models.outputs import LANGUAGE_AWARE_MODEL_TYPE
from lakd_ray.models.pretrained_head import describe_head, match_classes, reorder_head


def build_model(
    model_config: ModelConfig,
    emotions: Sequence[str],
    *,
    seed: int,
    languages: Sequence[str] = (),
    num_teachers: int = 0,
) -> EmotionClassifier:
    """Build a network as configured, either pretrained or with random weights.

    The final layer of a pretrained classifier is used for the classes that it has under the same names, in any order;
    otherwise, and for a language-aware student, the head is new.

    Args:
        model_config: the `model` section.
        emotions: class names, in the order of the logits.
        seed: seeds the random weights.
        languages: for a language-aware head, the languages that it distinguishes.
        num_teachers: for a language-aware head, the number of teachers to learn weights for; 0 disables the attention.

    Raises:
        ConfigError: transformers rejects the architecture, or the pretrained model cannot be loaded.
    """
    torch.manual_seed(seed)
    network, head_note = (
        (_build_from_config(model_config, emotions), None)
        if model_config.config is not None
        else _load_pretrained(model_config, emotions)
    )
    layer_indices = None if model_config.num_layers is None else tuple(prune_layers(network, model_config.num_layers))
    if model_config.language_aware is not None:
        from lakd_ray.models.language_aware import add_language_aware_head  # loads transformers

        sizes = model_config.language_aware.model_dump(exclude={"language_id_loss_weight"})
        network = add_language_aware_head(network, languages=languages, num_teachers=num_teachers, **sizes)
    built = EmotionClassifier(network, freeze_encoder=model_config.freeze_encoder)
    built.source_layer_indices, built.pretrained_head_note = layer_indices, head_note
    if model_config.freeze_feature_encoder:
        built.backbone.feature_encoder.requires_grad_(False)
    return built


def _label_config(emotions: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(emotions),
        "id2label": dict(enumerate(emotions)),
        "label2id": {emotion: index for index, emotion in enumerate(emotions)},
    }


def _build_from_config(model_config: ModelConfig, emotions: Sequence[str]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig  # seconds to load

    assert model_config.config is not None
    try:
        config = _disable_layerdrop(AutoConfig.for_model(**(model_config.config | _label_config(emotions))))
        return pretrained.build_network(config)
    except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise ConfigError(f"transformers rejects `model.config`: {error}") from error


def _load_pretrained(model_config: ModelConfig, emotions: Sequence[str]) -> tuple[Any, str | None]:
    """Load a network; return it with a sentence on its pretrained head, or None if the head is new."""
    assert model_config.pretrained is not None
    name, revision = model_config.pretrained, model_config.revision
    try:
        source = pretrained.load_config(name, revision)
        if source.model_type == LANGUAGE_AWARE_MODEL_TYPE:
            raise ConfigError(
                f"`model.pretrained: {name}` has a language-aware head: expected a model with a plain head or without "
                "one"
            )
        labels = [source.id2label[index] for index in range(source.num_labels)]
        rows = {} if model_config.language_aware is not None else match_classes(labels, emotions)
        # With the labels of the experiment, a head of a different size is replaced by a new one.
        config = source if rows else pretrained.load_config(name, revision, **_label_config(emotions))
        network, has_head = _load_weights(model_config, config)
    except pretrained.LOADING_ERRORS as error:
        raise ConfigError(
            f"cannot load `model.pretrained: {name}`: {error}. Expected a hub name (with network "
            "access or a filled cache) or a folder with config.json and model.safetensors. If it has only "
            "pytorch_model.bin, run `lakd to-safetensors NAME FOLDER` and use that folder."
        ) from error
    if model_config.language_aware is not None or not (rows or has_head):
        return network, None
    make_backbone(network)  # rejects a family whose head has a different layout
    if rows or len(labels) == len(emotions):  # else transformers has replaced the head
        reorder_head(network, rows if has_head else {}, emotions)
    for key, value in _label_config(emotions).items():
        setattr(network.config, key, value)
    return network, describe_head(labels, rows, emotions) if has_head else None


def _load_weights(model_config: ModelConfig, config: Any) -> tuple[Any, bool]:
    """Load a network; return it and whether the checkpoint has a final layer."""
    assert model_config.pretrained is not None
    config.use_weighted_layer_sum = False  # as the backbones compute features
    network, loading = pretrained.load_network(
        model_config.pretrained,
        model_config.revision,
        config=_disable_layerdrop(config),
        ignore_mismatched_sizes=True,
    )
    return network, "classifier.weight" not in loading["missing_keys"]


def _disable_layerdrop(config: Any) -> Any:
    """Turn layerdrop off: ranks would skip different layers and deadlock."""
    for name in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def prune_layers(network: Any, num_layers: int) -> list[int]:
    """Remove all but `num_layers` transformer layers in place; return the indices of those that remain.

    They are spread evenly from the first to the last, as in DistilBERT, which takes every other layer (Sanh et al.
    2019, arXiv 1910.01108).

    Raises:
        ConfigError: the network has fewer layers.
    """
    backbone = make_backbone(network)
    layers = backbone.transformer_layers
    if num_layers > len(layers):
        raise ConfigError(
            f"`model.num_layers` is {num_layers}, but the network has {len(layers)} layers: "
            f"set it to {len(layers)} or lower"
        )
    indices = np.linspace(0, len(layers) - 1, num_layers).round().astype(int).tolist()
    remaining = nn.ModuleList([layers[index] for index in indices])
    del layers[:]
    layers.extend(remaining)
    for config in {id(config): config for config in (network.config, backbone.config)}.values():
        for name in ("num_hidden_layers", "encoder_layers"):
            if hasattr(config, name):
                setattr(config, name, num_layers)
    return list(indices)
