"""Inference with a trained model: one path from waves to logits, shared by evaluation, bulk inference and serving.

Shape suffixes: B utterances, T samples, C classes, L languages.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.config import Backend as BackendName
from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ClipError, ConfigError
from lakd_ray.grouping import group_by_budget
from lakd_ray.inference import backends
from lakd_ray.inference.backends import Backend, SharedFeatures, TorchBackend
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.recordings import (
    MAX_SECONDS,
    AudioSource,
    assemble_result,
    plan_waves,
    read_recording,
    validate_segment_count,
)
from lakd_ray.inference.results import EmotionResult, ModelInfo, Prediction
from lakd_ray.models import CheckpointMetadata, EmotionClassifier, encode_languages, pad_batch
from lakd_ray.models.external_teacher import load_external_teacher
from lakd_ray.models.min_length import min_samples
from lakd_ray.models.pretrained import CONFIG_FILE
from lakd_ray.runs import record

# Padded seconds of a forward pass; waves of similar length share one, to limit padding. A single wave keeps a CPU busy
# with a large network, and larger batches do not fit into its caches.
_MAX_BATCH_SECONDS = {"cuda": 60, "cpu": 10}

_MAX_GROUP_SECONDS = 240.0  # seconds of audio decoded at a time by `Predictor.predict_many`

LanguageHints = Sequence[str | None] | None
ModelLogits = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


class Predictor:
    """A trained model in eval mode, in this process, without Ray.

        predictor = Predictor.load("runs/demo/export")
        print(predictor.predict("clip.wav").emotion)

    Args:
        model: a network, which runs in torch with fp32, or a backend that holds one.
        metadata: metadata of the checkpoint.
        version: short hash of the checkpoint; empty if the model is not from a checkpoint.
        emotions: the checkpoint's classes in the order to return them; in the checkpoint's order if empty.

    Raises:
        CheckpointError: the metadata and the network list different classes, or the same in a different order.
        DataError: `emotions` and the checkpoint have different classes.

    Attributes:
        backend: the inference backend.
        emotions: classes in the order of the logits that this object returns.
        class_indices: position of each of these classes in the outputs of the network.
        languages: languages the model was trained on.
        identifiable_languages: languages that a language-aware student identifies; empty for other models.
        model_id: name of the checkpoint in results and tables.
        version: short hash of the checkpoint; empty if the model is not from a checkpoint.
        calibration_temperature: logits are divided by it before the softmax, which calibrates the probabilities.
    """

    def __init__(
        self,
        model: EmotionClassifier | Backend,
        metadata: CheckpointMetadata,
        *,
        version: str = "",
        emotions: Sequence[str] = (),
    ) -> None:
        self.backend = TorchBackend(model) if isinstance(model, EmotionClassifier) else model
        self.metadata = metadata
        metadata.check_classes(self.backend.emotions, context=metadata.model_id)
        self.emotions = tuple(emotions) or metadata.emotions
        self.class_indices = metadata.class_indices(self.emotions)
        self.languages = metadata.languages
        self.identifiable_languages = self.backend.languages
        self.model_id = metadata.model_id
        self.version = version
        self.calibration_temperature = metadata.calibration_temperature

    @classmethod
    def load(
        cls,
        checkpoint: str | ExternalTeacherConfig,
        *,
        emotions: Sequence[str] = (),
        threads: int | None = None,
        backend: BackendName = "torch",
        device: str = "auto",
    ) -> "Predictor":
        """Load the model of a checkpoint folder.

        Args:
            checkpoint: path or s3:// location of a checkpoint folder, or the configuration of an external teacher.
            emotions: classes in the order to return them. Those of a checkpoint of this project must be the same in any
                order, and are returned in the checkpoint's order if empty; those of an external teacher are mapped.
            threads: CPU threads of torch in this process and of the ONNX runtime; torch's setting if None.
            backend: inference backend, see `lakd_ray.inference.backends`. ONNX backends use the graph in an exported
                folder; from other folders they export it first, which can take minutes.
            device: `cpu`, `cuda`, `cuda:INDEX`, or `auto`: the GPU that a task or actor of Ray has reserved, in other
                processes the first one, the CPU without a GPU. int8 and ONNX backends run on the CPU.

        Raises:
            StorageError, CheckpointError: the folder is missing or corrupted, or its network cannot be exported.
            ConfigError: the backend is not available, or the device is not for it.
            ResourceError: the process does not have the configured device.
            DataError: the checkpoint has other classes than `emotions`.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        place = backends.resolve_device(backend, device)
        if isinstance(checkpoint, ExternalTeacherConfig):
            metadata = CheckpointMetadata(checkpoint.name, tuple(emotions), (), Provenance(), {})
            network = load_external_teacher(checkpoint, emotions)
            return cls(backends.from_model(backend, network, threads, place), metadata)
        # checks that the folder is complete
        loaded, metadata = backends.from_checkpoint(backend, checkpoint, threads, place)
        loaded.min_samples = min_samples(storage.read_json(storage.join(checkpoint, CONFIG_FILE)))
        return cls(loaded, metadata, version=record.folder_fingerprint(checkpoint), emotions=emotions)

    def predict(
        self,
        source: AudioSource,
        *,
        sample_rate: int | None = None,
        language: str | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> EmotionResult:
        """Return the emotion of a recording, as the endpoint does.

        Args:
            source: a path or s3:// location, the bytes of an encoded file (WAV, FLAC, OGG, MP3; others with ffmpeg), or
                an array of floats in [-1, 1], shape [T] or [T, channels].
            sample_rate: sample rate of an array, in Hz.
            language: language of the recording (`en`, `de`), where it is known; None lets a language-aware student
                identify it.
            window_s: length of a timeline's segments, in seconds; no timeline if None.
            hop_s: seconds from the start of a segment to the start of the next; `window_s` if None.
            top_k: return only the K most probable emotions; all if None.
            max_seconds: longer recordings are rejected.

        Raises:
            DataError: the recording cannot be read or decoded, is too short or too long, or has too many segments.
            ConfigError: an option is out of range.
        """
        (result,) = self.predict_many(
            [source],
            sample_rate=sample_rate,
            language=language,
            window_s=window_s,
            hop_s=hop_s,
            top_k=top_k,
            max_seconds=max_seconds,
        )
        return result

    def predict_many(
        self,
        sources: Iterable[AudioSource],
        *,
        sample_rate: int | None = None,
        language: str | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        top_k: int | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> list[EmotionResult]:
        """Return the emotions of recordings, in their order. Recordings of similar length share a forward pass.

        Args:
            sources: recordings, as in `predict`. The other options are those of `predict` and apply to all recordings.

        Raises:
            DataError, ConfigError: as in `predict`, at the first recording that is not valid.
        """
        options = PredictOptions(language=language, window_s=window_s, hop_s=hop_s, top_k=top_k)

        def read() -> Iterator[Recording]:
            for source in sources:
                recording = read_recording(source, sample_rate=sample_rate, max_seconds=max_seconds)
                validate_segment_count(len(recording.wave_T), options)
                yield recording

        results: list[EmotionResult] = []
        for group in group_by_budget(read(), lambda item: len(item.wave_T) / SAMPLE_RATE, _MAX_GROUP_SECONDS):
            results += self.predict_recordings(group, [options] * len(group))
        return results

    @property
    def info(self) -> ModelInfo:
        """Name, version, classes, languages and dev metrics of the model."""
        dev = self.metadata.training.get("dev", {})
        metrics = {name: dev[f"dev_{name}"] for name in ("UR", "WR", "ece") if dev.get(f"dev_{name}") is not None}
        return ModelInfo(
            model=self.model_id,
            version=self.version,
            emotions=self.emotions,
            languages=self.languages,
            identifiable_languages=self.identifiable_languages,
            corpora=self.metadata.corpora,
            datasets=self.metadata.datasets,
            undisclosed_models=tuple(sorted(self.metadata.provenance.undisclosed_models)),
            dev=metrics | {f"UR {code}": recall for code, recall in dev.get("dev_recall", {}).items()},
            calibration_temperature=self.calibration_temperature,
        )

    def predict_recordings(
        self, recordings: Sequence[Recording], options: Sequence[PredictOptions]
    ) -> list[EmotionResult]:
        """Return the results of decoded recordings, in their order, from few forward passes.

        Args:
            options: those of each recording.
        """
        pairs = list(zip(recordings, options, strict=True))
        planned = [plan_waves(recording, option) for recording, option in pairs]
        languages = [option.language for waves, option in zip(planned, options, strict=True) for _ in waves]
        predictions = iter(self.predict_waves([wave_T for waves in planned for wave_T in waves], languages))
        info = self.info
        return [
            assemble_result(info, recording, list(islice(predictions, len(waves))), option)
            for (recording, option), waves in zip(pairs, planned, strict=True)
        ]

    def predict_waves(self, waves: Sequence[Wave], languages: Sequence[str | None]) -> list[Prediction]:
        """Return the predictions for 16 kHz mono waves, in their order.

        Args:
            languages: the language of each wave; None lets a language-aware student identify it.
        """
        logits_BC, language_logits_BL = self._predict_logits(waves, languages)
        probabilities = softmax(logits_BC / self.calibration_temperature).tolist()
        if language_logits_BL is None:
            return [Prediction(probabilities=row) for row in probabilities]
        return [
            Prediction(
                probabilities=row,
                language=self.identifiable_languages[int(language_probabilities_L.argmax())],
                language_probability=float(language_probabilities_L.max()),
            )
            for row, language_probabilities_L in zip(probabilities, softmax(language_logits_BL), strict=True)
        ]

    def warmup(self) -> None:
        """Run forward passes on silence of the lengths whose first pass is slow, before any request arrives."""
        for num_samples in self.backend.warmup_lengths:
            self._predict_logits([np.zeros(num_samples, np.float32)])

    def logits(self, waves: Sequence[Wave], languages: LanguageHints = None) -> npt.NDArray[np.float32]:
        """Return the logits of 16 kHz mono waves, shape [B, C]; each row is independent of the other waves.

        Args:
            languages: for a language-aware student, the language of each wave; None lets the student identify it. A
                language it was not trained on counts as unknown.
        """
        return self._predict_logits(waves, languages)[0]

    def probabilities(self, waves: Sequence[Wave], languages: LanguageHints = None) -> npt.NDArray[np.float32]:
        """Return the calibrated class probabilities of 16 kHz mono waves, shape [B, C]."""
        return softmax(self.logits(waves, languages) / self.calibration_temperature)

    def _predict_logits(self, waves: Sequence[Wave], languages: LanguageHints = None) -> ModelLogits:
        """Return `logits`, and a language-aware student's logits over its languages, shape [B, L]; None for others."""
        return predict_with_models(waves, {"": (self, languages)})[""]

    def logits_from_features(self, features: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return the logits for outputs of the network's frontend, [F, H] for each wave; shape [B, C]."""
        inputs, num_frames_B = pad_batch([torch.from_numpy(features_FH) for features_FH in features])
        with torch.inference_mode():
            outputs = self.model(inputs.to(self.device), num_frames_B.to(self.device))
        logits_BC = np.asarray(outputs.logits_BC.float().cpu().numpy(), dtype=np.float32)
        return logits_BC[:, self.class_indices]

    @property
    def model(self) -> EmotionClassifier:
        """The network of a torch backend.

        Raises:
            ConfigError: the backend is not torch.
        """
        if not isinstance(self.backend, TorchBackend):
            raise ConfigError("this needs the torch network, which an ONNX backend does not have: use backend torch")
        return self.backend.model

    @property
    def device(self) -> torch.device:
        """The device of the backend."""
        return self.backend.device

    @property
    def max_batch_seconds(self) -> int:
        """Largest batch on this device in seconds, padding included; a longer wave is its own batch."""
        return _MAX_BATCH_SECONDS[self.device.type]


@torch.inference_mode()
def predict_with_models(
    waves: Sequence[Wave], queries: Mapping[str, tuple[Predictor, LanguageHints]]
) -> dict[str, ModelLogits]:
    """Return the logits of several models for the same waves, by the names in `queries`.

    Frozen frontends that models have in common run once.

    Args:
        queries: a model and the language of each wave, see `Predictor.logits`.

    Raises:
        ClipError: a wave is shorter than the encoder of a model accepts.
    """
    for predictor, _ in queries.values():
        _check_lengths(predictor, waves)
    outputs = {name: _empty_logits(predictor, len(waves)) for name, (predictor, _) in queries.items()}
    max_seconds = min(predictor.max_batch_seconds for predictor, _ in queries.values())
    for indices in _batches_by_length(waves, max_seconds):
        wave_BT, lengths_B = pad_batch([torch.from_numpy(waves[index]) for index in indices])
        shared_features: SharedFeatures = {}
        for name, (predictor, languages) in queries.items():
            hints = [None if languages is None else languages[index] for index in indices]
            languages_B = encode_languages(predictor.identifiable_languages, hints)
            output = predictor.backend.forward(wave_BT, lengths_B, languages_B, shared_features)
            logits_BC, language_logits_BL = outputs[name]
            logits_BC[indices] = output.logits_BC.float().cpu().numpy()[:, predictor.class_indices]
            if language_logits_BL is not None and output.language_logits_BL is not None:
                language_logits_BL[indices] = output.language_logits_BL.float().cpu().numpy()
    return outputs


def _check_lengths(predictor: Predictor, waves: Sequence[Wave]) -> None:
    needed, shortest = predictor.backend.min_samples, min(map(len, waves), default=0)
    if waves and shortest < needed:
        raise ClipError(
            f"a recording lasts {shortest / SAMPLE_RATE:.4f} s, and the encoder of {predictor.model_id or 'the model'} "
            f"needs at least {needed / SAMPLE_RATE:.4f} s ({needed} samples)",
            "short",
        )


def _empty_logits(predictor: Predictor, num_waves: int) -> ModelLogits:
    logits_BC = np.empty((num_waves, len(predictor.emotions)), dtype=np.float32)
    if not predictor.identifiable_languages:
        return logits_BC, None
    return logits_BC, np.empty((num_waves, len(predictor.identifiable_languages)), dtype=np.float32)


def _batches_by_length(waves: Sequence[Wave], max_seconds: int) -> Iterator[list[int]]:
    """Yield the indices of waves of similar length, the longest first."""
    budget = max_seconds * SAMPLE_RATE
    order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
    while order:
        size = max(1, budget // max(1, len(waves[order[0]])))
        batch, order = order[:size], order[size:]
        yield batch


def softmax(logits_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities over the last axis."""
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return np.asarray(shifted_BC / shifted_BC.sum(axis=-1, keepdims=True), dtype=np.float32)
