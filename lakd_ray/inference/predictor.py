"""A trained model that answers: the one path from waves to logits that evaluation, bulk inference and serving share.

Shape suffixes: B utterances, T samples, C classes, L languages.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from lakd_ray.audio import SAMPLE_RATE, Recording, Wave
from lakd_ray.config import Backend as BackendName
from lakd_ray.config import ExternalTeacherConfig
from lakd_ray.data.provenance import Provenance
from lakd_ray.errors import ConfigError
from lakd_ray.inference import backends
from lakd_ray.inference.backends import Backend, SharedFeatures, TorchBackend
from lakd_ray.inference.recordings import PredictOptions, assemble_result, plan_waves
from lakd_ray.inference.results import EmotionResult, ModelInfo, Prediction
from lakd_ray.models import CheckpointMetadata, EmotionClassifier, encode_languages, pad_batch
from lakd_ray.models.external_teacher import load_external_teacher
from lakd_ray.runs import record

# Waves of similar length are run together up to this many padded seconds, so that little is spent on padding. A CPU is
# busy with a single one of a large network, and a batch leaves its caches.
_MAX_BATCH_SECONDS = {"cuda": 60, "cpu": 10}

LanguageHints = Sequence[str | None] | None
ModelLogits = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


class Predictor:
    """A checkpoint in eval mode.

    Args:
        model: the network, answering in torch's fp32, or a backend that has one.

    Attributes:
        backend: what computes.
        emotions: classes in the order of the logits.
        languages: languages it was trained on.
        hears: languages that it knows apart, if it is a language-aware student.
        model_id: names the checkpoint in answers and tables.
        version: which weights of it, a short hash of the checkpoint; empty if it was not read from one.
        temperature: what logits are divided by before the softmax, so that probabilities are calibrated.
    """

    def __init__(self, model: EmotionClassifier | Backend, metadata: CheckpointMetadata, *, version: str = "") -> None:
        self.backend = TorchBackend(model) if isinstance(model, EmotionClassifier) else model
        self.metadata = metadata
        self.emotions = metadata.emotions
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
    ) -> "Predictor":
        """Read a checkpoint folder.

        Args:
            location: path or s3:// location of a sealed checkpoint folder, or a teacher that was trained elsewhere.
            emotions: for the latter, the classes that its own are to become.
            threads: torch's CPU threads for this process and onnxruntime's for this model, as torch has them if None.
            backend: what computes, see `lakd_ray.inference.backends`. Those of ONNX take the graph of an exported folder;
                of another one they make it now, which takes up to minutes.

        Raises:
            StorageError, CheckpointError: the folder cannot be trusted, or its network cannot be written as ONNX.
            ConfigError: the backend cannot be had here.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        backends.check_available(backend)
        if isinstance(checkpoint, ExternalTeacherConfig):
            card = CheckpointMetadata(checkpoint.name, tuple(emotions), (), Provenance(), {})
            return cls(backends.from_model(backend, load_external_teacher(checkpoint, emotions), threads), card)
        version = record.folder_fingerprint(checkpoint)
        return cls(*backends.from_checkpoint(backend, checkpoint, threads), version=version)

    @property
    def info(self) -> ModelInfo:
        """Name, version, classes, languages and dev metrics of the model."""
        dev = self.metadata.training.get("dev", {})
        metrics = {name: dev[f"dev_{name}"] for name in ("UR", "WR", "ece") if f"dev_{name}" in dev}
        return ModelInfo(
            model=self.model_id,
            version=self.version,
            emotions=self.emotions,
            languages=self.languages,
            identifiable_languages=self.identifiable_languages,
            corpora=self.metadata.corpora,
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
        waves_of = [plan_waves(recording, each) for recording, each in zip(recordings, options, strict=True)]
        waves = [wave_T for waves in waves_of for wave_T in waves]
        languages = [each.language for waves, each in zip(waves_of, options, strict=True) for _ in waves]
        predictions = iter(self.predict_waves(waves, languages) if waves else [])
        info = self.info
        return [
            assemble_result(info, recording, [next(predictions) for _ in waves], each)
            for recording, waves, each in zip(recordings, waves_of, options, strict=True)
        ]

    def predict_waves(self, waves: Sequence[Wave], languages: Sequence[str | None]) -> list[Prediction]:
        """Return the predictions for 16 kHz mono waves, in their order.

        Args:
            languages: the language of each wave; None lets a language-aware student identify it.
        """
        logits_BC, language_logits_BL = self.predict_logits(waves, languages)
        probabilities = softmax(logits_BC / self.calibration_temperature).tolist()
        if language_logits_BL is None:
            return [Prediction(probabilities=row) for row in probabilities]
        return [
            Prediction(
                probabilities=row,
                language=self.identifiable_languages[int(share_L.argmax())],
                language_probability=float(share_L.max()),
            )
            for row, share_L in zip(probabilities, softmax(language_logits_BL), strict=True)
        ]

    def warmup(self) -> None:
        """Answer silence of the lengths at which the first call is slow, so that nobody waits for it."""
        for samples in self.backend.warmup_lengths:
            self.predict_logits([np.zeros(samples, np.float32)])

    def logits(self, waves: Sequence[Wave], languages: LanguageHints = None) -> npt.NDArray[np.float32]:
        """Logits of 16 kHz mono waves, shape [B, C]; each independent of the others.

        Args:
            languages: for a language-aware student, each wave's language; where it is None, what the student hears.
                A language that it has not learned is unknown to it.
        """
        return self.predict_logits(waves, languages)[0]

    def probabilities(self, waves: Sequence[Wave], languages: LanguageHints = None) -> npt.NDArray[np.float32]:
        """Calibrated class probabilities of 16 kHz mono waves, shape [B, C]."""
        return softmax(self.logits(waves, languages) / self.calibration_temperature)

    def predict_logits(self, waves: Sequence[Wave], languages: LanguageHints = None) -> ModelLogits:
        """Logits as above, and a language-aware student's logits over its languages, shape [B, L]; else None."""
        return predict_with_models(waves, {"": (self, languages)})[""]

    def logits_from_features(self, features: Sequence[Wave]) -> npt.NDArray[np.float32]:
        """Logits from what the first step of the network makes of waves, [F, H] each; shape [B, C]."""
        inputs, frames_B = pad_batch([torch.from_numpy(each_FH) for each_FH in features])
        with torch.inference_mode():
            outputs = self.model(inputs.to(self.device), frames_B.to(self.device))
        return np.asarray(outputs.logits_BC.float().cpu().numpy(), dtype=np.float32)

    @property
    def model(self) -> EmotionClassifier:
        """The network.

        Raises:
            ConfigError: the backend is not torch's and holds none.
        """
        if not isinstance(self.backend, TorchBackend):
            raise ConfigError("this needs the network itself, which an ONNX backend does not hold: take backend torch")
        return self.backend.model

    @property
    def device(self) -> torch.device:
        """Where the network lies; see `model`."""
        return next(self.model.parameters()).device


@torch.inference_mode()
def predict_with_models(
    waves: Sequence[Wave], queries: Mapping[str, tuple[Predictor, LanguageHints]]
) -> dict[str, ModelLogits]:
    """What several models say about the same waves, each with the languages that it is told.

    What the first steps of their networks have in common, because they were frozen, is computed once.
    """
    found = {
        name: (
            np.empty((len(waves), len(predictor.emotions)), dtype=np.float32),
            np.empty((len(waves), len(predictor.identifiable_languages)), dtype=np.float32)
            if predictor.identifiable_languages
            else None,
        )
        for name, (predictor, _) in queries.items()
    }
    for chosen in _batches_by_length(waves):
        wave_BT, lengths_B = pad_batch([torch.from_numpy(waves[index]) for index in chosen])
        made: SharedFeatures = {}
        for name, (predictor, codes) in queries.items():
            told = [None if codes is None else codes[index] for index in chosen]
            outputs = predictor.backend.forward(
                wave_BT, lengths_B, encode_languages(predictor.identifiable_languages, told), made
            )
            logits_BC, languages_BL = found[name]
            logits_BC[chosen] = outputs.logits_BC.float().cpu().numpy()
            if languages_BL is not None and outputs.language_logits_BL is not None:
                languages_BL[chosen] = outputs.language_logits_BL.float().cpu().numpy()
    return found


def max_batch_seconds() -> int:
    """How much audio is run together here, at most, padding included; a longer wave runs alone."""
    return _MAX_BATCH_SECONDS["cuda" if torch.cuda.is_available() else "cpu"]


def _batches_by_length(waves: Sequence[Wave]) -> Iterator[list[int]]:
    """Waves of similar length that are run together."""
    samples = max_batch_seconds() * SAMPLE_RATE
    order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
    while order:
        fits = max(1, samples // max(1, len(waves[order[0]])))
        chosen, order = order[:fits], order[fits:]
        yield chosen


def softmax(logits_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities over the last axis."""
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return np.asarray(shifted_BC / shifted_BC.sum(axis=-1, keepdims=True), dtype=np.float32)
