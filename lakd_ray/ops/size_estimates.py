"""Bytes of corpora, shards, models and logits before they exist."""

import io
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import CorpusConfig, Experiment, ModelConfig
from lakd_ray.data.manifest import FEATURES_FOLDER, MANIFEST_FILE
from lakd_ray.errors import ConfigError

_AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au")
_NUM_SAMPLED = 8  # recordings of a corpus that are opened
_FLAC_RATIO = 0.7  # of 16-bit samples; the demo corpus has 0.65
_MANIFEST_ROW_BYTES, _LOGITS_ROW_BYTES = 400, 150  # bytes an utterance, names included
_FEATURE_BYTES_PER_SECOND = 50 * 512 * 2  # bytes a second: frames, channels of wav2vec2, 16 bits
_BASE_PARAMETERS = 94_600_000  # wav2vec2-base
_METADATA_BYTES = 1_000_000


@dataclass(frozen=True)
class CorpusSize:
    """An experiment's recordings."""

    corpora: int
    """Bytes of the corpora."""
    utterances: int
    shards: int
    """Bytes of shards and manifest."""
    features: int
    """Bytes of cached features, if there are to be any."""


def estimate_corpus_size(config: Experiment, notes: list[str]) -> CorpusSize:
    """The corpora as they lie there; the prepared data instead, once there is some."""
    found = [_scan_corpus(corpus, config, notes) for corpus in config.corpora]
    source, utterances = sum(each[0] for each in found), sum(each[1] for each in found)
    seconds = sum(each[2] for each in found)
    shards = round(seconds * SAMPLE_RATE * 2 * _FLAC_RATIO) + utterances * _MANIFEST_ROW_BYTES
    prepared = config.stage_folder("prepare")
    manifest = storage.join(prepared, MANIFEST_FILE)
    if storage.exists(manifest):
        samples = storage.read_table(manifest, columns=["num_samples"])["num_samples"].to_numpy()
        utterances, seconds = len(samples), float(samples.sum()) / SAMPLE_RATE
        cached = storage.join(prepared, FEATURES_FOLDER) + "/"
        shards = sum(info.size for info in storage.list_files(prepared) if not info.location.startswith(cached))
    encoders = len({config.teacher.model.pretrained, config.student.model.pretrained})
    features = round(seconds * _FEATURE_BYTES_PER_SECOND) * encoders if config.train.cache_features else 0
    return CorpusSize(source, utterances, shards, features)


def _scan_corpus(corpus: CorpusConfig, config: Experiment, notes: list[str]) -> tuple[int, int, float]:
    """Bytes, recordings and seconds of a corpus."""
    root = corpus.root.replace("{storage}", config.storage.rstrip("/"))
    folder = root.rpartition("/")[0] if root.endswith((".csv", ".jsonl")) else root
    found = list(storage.list_files(folder))
    recordings = [
        info for info in found if info.name.lower().endswith(_AUDIO_SUFFIXES) and not info.name.startswith(".")
    ]
    if not recordings:
        notes.append(f"corpus {corpus.name}: no recordings below {folder} yet, so its part is left out")
        return 0, 0, 0.0
    sampled = recordings[:: -(-len(recordings) // _NUM_SAMPLED)]
    seconds = [_read_duration(info.location) for info in sampled]
    per_byte = sum(seconds) / max(1, sum(info.size for info in sampled))
    total = sum(min(config.audio.max_seconds, info.size * per_byte) for info in recordings)
    return sum(info.size for info in found), len(recordings), total


def _read_duration(location: str) -> float:
    import soundfile

    try:
        return float(soundfile.info(io.BytesIO(storage.read_bytes(location))).duration)
    except soundfile.LibsndfileError:  # the prepare stage will quarantine it
        return 0.0


@dataclass(frozen=True)
class CheckpointSize:
    """A model's folders."""

    checkpoint: int
    """`best-NNNN/`: weights in fp32."""
    resume: int
    """`resume-NNNN/`, all ranks together."""


def estimate_checkpoint_size(model: ModelConfig, config: Experiment, notes: list[str]) -> CheckpointSize:
    """Sizes of a model's checkpoint and of the state to go on from (as measured of DeepSpeed 0.19)."""
    everything, trained = count_parameters(model, notes)
    beside = everything if config.train.zero_stage < 3 else everything - trained  # stage 3 has but its fp32 copy
    module = beside * (2 if config.train.precision == "bf16" else 4)
    # Adam's two moments and, but for plain fp32, DeepSpeed's own fp32 copy of what is trained; divided among ranks
    copies = 2 if config.train.zero_stage == 0 and config.train.precision == "fp32" else 3
    return CheckpointSize(everything * 4 + _METADATA_BYTES, module + trained * 4 * copies + _METADATA_BYTES)


def count_parameters(model: ModelConfig, notes: list[str]) -> tuple[int, int]:
    """Numbers of all and of trained parameters, counted without allocating them.

    Raises:
        ConfigError: transformers refuses the architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForAudioClassification  # seconds to load

    from lakd_ray.models.backbone import make_backbone
    from lakd_ray.models.factory import prune_layers

    try:
        if model.config is not None:
            config = AutoConfig.for_model(**model.config)
        else:
            config = AutoConfig.from_pretrained(model.pretrained, revision=model.revision, local_files_only=True)
        config.use_weighted_layer_sum = False  # as when it is built
        with torch.device("meta"):
            network = AutoModelForAudioClassification.from_config(config)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if model.config is not None:
            raise ConfigError(f"`model.config` is refused by transformers: {error}") from error
        notes.append(f"{model.pretrained} is not on this machine: taken for as large as wav2vec2-base")
        return _BASE_PARAMETERS, _BASE_PARAMETERS
    if model.num_layers is not None:
        prune_layers(network, model.num_layers)
    backbone = make_backbone(network)
    if model.freeze_encoder:
        backbone.encoder.requires_grad_(False)
    elif model.freeze_feature_encoder:
        backbone.feature_encoder.requires_grad_(False)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def logits_row_bytes(config: Experiment) -> int:
    """Bytes of one model's answer to one utterance."""
    return _LOGITS_ROW_BYTES + 4 * len(config.emotions)
