"""Estimates of the bytes of corpora, shards, checkpoints and logits before they exist."""

import io
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, decode_audio
from lakd_ray.audio.sources import has_audio_suffix
from lakd_ray.config import CorpusConfig, Experiment, ModelConfig
from lakd_ray.data.manifest import FEATURES_FOLDER, MANIFEST_FILE
from lakd_ray.errors import ClipError, ConfigError, StorageError

_NUM_SAMPLED = 8  # recordings per corpus that are opened
_COMPRESSED_BYTES_PER_SECOND = 4_000  # 32 kbit/s: a low rate for speech, so that the estimated duration is high
_FLAC_RATIO = 0.7  # of 16-bit samples; the demo corpus has 0.65
_MANIFEST_ROW_BYTES, _LOGITS_ROW_BYTES = 400, 150  # per utterance, names included
_FEATURE_BYTES_PER_SECOND = 50 * 512 * 2  # frames, channels of wav2vec2, 16 bits
_BASE_PARAMETERS = 94_600_000  # wav2vec2-base
_METADATA_BYTES = 1_000_000


@dataclass(frozen=True)
class CorpusSize:
    """Sizes of all corpora of an experiment and of the data prepared from them."""

    corpora: int
    """Bytes of the corpora."""
    utterances: int
    shards: int
    """Bytes of shards and manifest."""
    features: int
    """Bytes of cached features; 0 without `train.cache_features`."""


def estimate_corpus_size(config: Experiment, notes: list[str]) -> CorpusSize:
    """Estimate the prepared data from the corpora, or measure it if it exists.

    Args:
        config: the experiment.
        notes: a note is added for each assumption.
    """
    scans = [_scan_corpus(corpus, config, notes) for corpus in config.corpora]
    source, utterances = sum(scan.size for scan in scans), sum(scan.recordings for scan in scans)
    seconds = sum(scan.seconds for scan in scans)
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


@dataclass(frozen=True)
class _CorpusScan:
    """Bytes, number of recordings and estimated duration of one corpus."""

    size: int
    recordings: int
    seconds: float


def _scan_corpus(corpus: CorpusConfig, config: Experiment, notes: list[str]) -> _CorpusScan:
    root = corpus.root.replace("{storage}", config.storage.rstrip("/"))
    folder = root.rpartition("/")[0] if root.endswith((".csv", ".jsonl")) else root
    files = list(storage.list_files(folder))
    recordings = [info for info in files if has_audio_suffix(info.name) and not info.name.startswith(".")]
    if not recordings:
        notes.append(f"corpus {corpus.name}: no recordings in {folder} yet, so the estimate does not include it")
        return _CorpusScan(0, 0, 0.0)
    sampled = recordings[:: -(-len(recordings) // _NUM_SAMPLED)]
    durations = [_read_duration(info.location) for info in sampled]
    if None in durations:
        notes.append(
            f"corpus {corpus.name}: some recordings need ffmpeg, which is not installed; their duration is estimated "
            f"for {_COMPRESSED_BYTES_PER_SECOND * 8 // 1000} kbit/s"
        )
    seconds = [
        info.size / _COMPRESSED_BYTES_PER_SECOND if duration is None else duration
        for info, duration in zip(sampled, durations, strict=True)
    ]
    per_byte = sum(seconds) / max(1, sum(info.size for info in sampled))
    total = sum(min(config.audio.max_seconds, info.size * per_byte) for info in recordings)
    return _CorpusScan(sum(info.size for info in files), len(recordings), total)


def _read_duration(location: str) -> float | None:
    """Return the seconds of a recording, 0 if it cannot be decoded, None if only ffmpeg could decode it."""
    import soundfile

    content = storage.read_bytes(location)
    try:
        return float(soundfile.info(io.BytesIO(content)).duration)
    except soundfile.LibsndfileError:
        pass  # a container such as M4A or WebM, or a damaged file
    try:
        return len(decode_audio(content, source_name=location)) / SAMPLE_RATE
    except ClipError as error:
        return None if error.kind == "needs-ffmpeg" else 0.0  # the prepare stage quarantines damaged files


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of the folders that training writes for a model."""

    checkpoint: int
    """`best-NNNN/`: weights in fp32."""
    resume: int
    """`resume-NNNN/` of all ranks together."""


def estimate_checkpoint_size(model: ModelConfig, config: Experiment, notes: list[str]) -> CheckpointSize:
    """Estimate the size of a model's checkpoint and of its resume state, as measured with DeepSpeed 0.19."""
    parameters, trained = count_parameters(model, notes)
    # ZeRO-3 saves the trained parameters only once, as fp32 copies
    saved = parameters if config.train.zero_stage < 3 else parameters - trained
    module = saved * (2 if config.train.precision == "bf16" else 4)
    # Adam's two moments and, except for plain fp32, DeepSpeed's fp32 copy of the trained parameters, over all ranks
    copies = 2 if config.train.zero_stage == 0 and config.train.precision == "fp32" else 3
    return CheckpointSize(parameters * 4 + _METADATA_BYTES, module + trained * 4 * copies + _METADATA_BYTES)


def count_parameters(model: ModelConfig, notes: list[str]) -> tuple[int, int]:
    """Return the numbers of all and of trained parameters, without allocating them.

    A pretrained model that is not in the local cache counts as wav2vec2-base, and `notes` gets a note.

    Raises:
        ConfigError: transformers rejects the architecture.
    """
    import torch
    from transformers import AutoConfig  # takes seconds to load

    from lakd_ray.models import pretrained
    from lakd_ray.models.backbone import make_backbone
    from lakd_ray.models.factory import prune_layers

    try:
        if model.config is not None:
            config = AutoConfig.for_model(**model.config)
        else:
            config = pretrained.load_config(str(model.pretrained), model.revision, local_files_only=True)
        config.use_weighted_layer_sum = False  # as in `build_model`
        with torch.device("meta"):
            network = pretrained.build_network(config)
    except (*pretrained.LOADING_ERRORS, StorageError) as error:
        if model.config is not None:
            raise ConfigError(f"transformers rejects `model.config`: {error}") from error
        notes.append(f"{model.pretrained} is not on this machine; its size is assumed to be that of wav2vec2-base")
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
    """Return the bytes of one model's logits for one utterance."""
    return _LOGITS_ROW_BYTES + 4 * len(config.emotions)
