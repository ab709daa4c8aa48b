"""A trained model that answers: the one path from waves to logits that evaluation, bulk inference and serving share.

Shape suffixes: B utterances, T samples, C classes, L languages.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from lakd_ray import records, storage
from lakd_ray.audio import SAMPLE_RATE, Wave
from lakd_ray.config import Backend as BackendName
from lakd_ray.config import Brought
from lakd_ray.errors import ConfigError
from lakd_ray.infer import backends
from lakd_ray.infer.backends import Backend, FirstSteps, Torch
from lakd_ray.models import Card, EmotionClassifier, language_ids, pad
from lakd_ray.models.brought import load_brought
from lakd_ray.provenance import Provenance

# Waves of similar length are run together up to this many padded seconds, so that little is spent on padding. A CPU is
# busy with a single one of a large network, and a batch leaves its caches.
_BATCH_S = {"cuda": 60, "cpu": 10}

Languages = Sequence[str | None] | None
Answer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


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

    def __init__(self, model: EmotionClassifier | Backend, card: Card, *, version: str = "") -> None:
        self.backend = Torch(model) if isinstance(model, EmotionClassifier) else model
        self.card = card
        self.emotions = card.emotions
        self.languages = card.languages
        self.hears = self.backend.languages
        self.model_id = card.model_id
        self.version = version
        self.temperature = card.temperature

    @classmethod
    def load(
        cls,
        location: str | Brought,
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
            backend: what computes, see `lakd_ray.infer.backends`. Those of ONNX take the graph of an exported folder;
                of another one they make it now, which takes up to minutes.

        Raises:
            StorageError, CheckpointError: the folder cannot be trusted, or its network cannot be written as ONNX.
            ConfigError: the backend cannot be had here.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        backends.check(backend)
        if isinstance(location, Brought):
            card = Card(location.name, tuple(emotions), (), Provenance(), {})
            return cls(backends.of_model(backend, load_brought(location, emotions), threads), card)
        version = records.digest(storage.read_json(storage.join(location, storage.SEAL)))
        return cls(*backends.of_checkpoint(backend, location, threads), version=version)

    def warm(self) -> None:
        """Answer silence of the lengths at which the first call is slow, so that nobody waits for it."""
        for samples in self.backend.slow_once:
            self.answer([np.zeros(samples, np.float32)])

    def logits(self, waves: Sequence[Wave], languages: Languages = None) -> npt.NDArray[np.float32]:
        """Logits of 16 kHz mono waves, shape [B, C]; each independent of the others.

        Args:
            languages: for a language-aware student, each wave's language; where it is None, what the student hears.
                A language that it has not learned is unknown to it.
        """
        return self.answer(waves, languages)[0]

    def probabilities(self, waves: Sequence[Wave], languages: Languages = None) -> npt.NDArray[np.float32]:
        """Calibrated class probabilities of 16 kHz mono waves, shape [B, C]."""
        return softmax(self.logits(waves, languages) / self.temperature)

    def answer(self, waves: Sequence[Wave], languages: Languages = None) -> Answer:
        """Logits as above, and a language-aware student's logits over its languages, shape [B, L]; else None."""
        return answer_together(waves, {"": (self, languages)})[""]

    def answer_features(self, features: Sequence[Wave]) -> npt.NDArray[np.float32]:
        """Logits from what the first step of the network makes of waves, [F, H] each; shape [B, C]."""
        inputs, frames_B = pad([torch.from_numpy(each_FH) for each_FH in features])
        with torch.inference_mode():
            outputs = self.model(inputs.to(self.device), frames_B.to(self.device))
        return np.asarray(outputs.logits_BC.float().cpu().numpy(), dtype=np.float32)

    @property
    def model(self) -> EmotionClassifier:
        """The network.

        Raises:
            ConfigError: the backend is not torch's and holds none.
        """
        if not isinstance(self.backend, Torch):
            raise ConfigError("this needs the network itself, which an ONNX backend does not hold: take backend torch")
        return self.backend.model

    @property
    def device(self) -> torch.device:
        """Where the network lies; see `model`."""
        return next(self.model.parameters()).device


@torch.inference_mode()
def answer_together(waves: Sequence[Wave], asked: Mapping[str, tuple[Predictor, Languages]]) -> dict[str, Answer]:
    """What several models say about the same waves, each with the languages that it is told.

    What the first steps of their networks have in common, because they were frozen, is computed once.
    """
    found = {
        name: (
            np.empty((len(waves), len(predictor.emotions)), dtype=np.float32),
            np.empty((len(waves), len(predictor.hears)), dtype=np.float32) if predictor.hears else None,
        )
        for name, (predictor, _) in asked.items()
    }
    for chosen in _chunks(waves):
        wave_BT, lengths_B = pad([torch.from_numpy(waves[index]) for index in chosen])
        made: FirstSteps = {}
        for name, (predictor, codes) in asked.items():
            told = [None if codes is None else codes[index] for index in chosen]
            outputs = predictor.backend.answer(wave_BT, lengths_B, language_ids(predictor.hears, told), made)
            logits_BC, languages_BL = found[name]
            logits_BC[chosen] = outputs.logits_BC.float().cpu().numpy()
            if languages_BL is not None and outputs.language_logits_BL is not None:
                languages_BL[chosen] = outputs.language_logits_BL.float().cpu().numpy()
    return found


def batch_seconds() -> int:
    """How much audio is run together here, at most, padding included; a longer wave runs alone."""
    return _BATCH_S["cuda" if torch.cuda.is_available() else "cpu"]


def _chunks(waves: Sequence[Wave]) -> Iterator[list[int]]:
    """Waves of similar length that are run together."""
    samples = batch_seconds() * SAMPLE_RATE
    order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
    while order:
        fits = max(1, samples // max(1, len(waves[order[0]])))
        chosen, order = order[:fits], order[fits:]
        yield chosen


def softmax(logits_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities over the last axis."""
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return np.asarray(shifted_BC / shifted_BC.sum(axis=-1, keepdims=True), dtype=np.float32)
