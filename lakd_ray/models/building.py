"""Networks as the experiment file describes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from lakd_ray.config import Model
from lakd_ray.errors import ConfigError
from lakd_ray.models.backbones import backbone_of
from lakd_ray.models.classifier import EmotionClassifier
from lakd_ray.models.outputs import LANGUAGE_AWARE


def build(
    model: Model, emotions: Sequence[str], *, seed: int, languages: Sequence[str] = (), teachers: int = 0
) -> EmotionClassifier:
    """A network as configured: pretrained with a fresh head, or from a random start drawn from `seed`.

    Args:
        languages: for a language-aware head, the languages that it is to know apart.
        teachers: for a language-aware head, the number of teachers that its attention is to weigh; 0 for none.

    Raises:
        ConfigError: the architecture is refused by transformers, or the pretrained model cannot be loaded.
    """
    torch.manual_seed(seed)
    network = _from_architecture(model, emotions) if model.architecture is not None else _pretrained(model, emotions)
    taken = None if model.layers is None else tuple(keep_layers(network, model.layers))
    if model.language_aware is not None:
        from lakd_ray.models.language_aware import language_aware  # loads transformers

        sizes = model.language_aware.model_dump(exclude={"identify"})
        network = language_aware(network, languages=languages, teachers=teachers, **sizes)
    built = EmotionClassifier(network, frozen=model.freeze_encoder)
    built.taken = taken
    if model.freeze_feature_encoder:
        built.backbone.feature_encoder.requires_grad_(False)
    return built


def _labels(emotions: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(emotions),
        "id2label": dict(enumerate(emotions)),
        "label2id": {emotion: index for index, emotion in enumerate(emotions)},
    }


def _from_architecture(model: Model, emotions: Sequence[str]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForAudioClassification  # seconds to load

    assert model.architecture is not None
    try:
        config = _without_layerdrop(AutoConfig.for_model(**(model.architecture | _labels(emotions))))
        return AutoModelForAudioClassification.from_config(config)
    except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise ConfigError(f"`model.architecture` is refused by transformers: {error}") from error


def _pretrained(model: Model, emotions: Sequence[str]) -> Any:
    from transformers import AutoConfig, AutoModelForAudioClassification  # seconds to load

    import lakd_ray.models.language_aware  # noqa: F401 -- registers it, so that it is refused by its name

    try:
        config = AutoConfig.from_pretrained(model.pretrained, revision=model.revision, **_labels(emotions))
        if config.model_type == LANGUAGE_AWARE:
            raise ConfigError(
                f"`model.pretrained: {model.pretrained}` has a language-aware head; start from one with a plain head"
            )
        config.use_weighted_layer_sum = False  # the head is a fresh one
        return AutoModelForAudioClassification.from_pretrained(
            model.pretrained,
            config=_without_layerdrop(config),
            revision=model.revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head for other classes is replaced by a fresh one
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load `model.pretrained: {model.pretrained}`: {error}. Expected a hub name (with network "
            "access or a filled cache) or a folder with config.json and model.safetensors. Of one that has "
            "pytorch_model.bin alone: lakd convert NAME FOLDER, and name the folder."
        ) from error


def _without_layerdrop(config: Any) -> Any:
    """Ranks would skip different layers and wait for each other for ever."""
    for name in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def keep_layers(network: Any, count: int) -> list[int]:
    """Keep so many transformer layers, spread evenly from the first to the last, in place; returns their places.

    As DistilBERT and its relatives start (Sanh et al. 2019, arXiv 1910.01108, take one layer out of two).

    Raises:
        ConfigError: there are not so many.
    """
    backbone = backbone_of(network)
    layers = backbone.transformer_layers
    if count > len(layers):
        raise ConfigError(f"`model.layers: {count}` of a network that has {len(layers)}: give {len(layers)} or fewer")
    kept = np.linspace(0, len(layers) - 1, count).round().astype(int).tolist()
    chosen = nn.ModuleList([layers[place] for place in kept])
    del layers[:]
    layers.extend(chosen)
    for config in {id(each): each for each in (network.config, backbone.config)}.values():
        for name in ("num_hidden_layers", "encoder_layers"):
            if hasattr(config, name):
                setattr(config, name, count)
    return list(kept)
