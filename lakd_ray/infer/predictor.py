"""A trained model that answers: the one path from waves to logits that evaluation, bulk inference and serving share.

Shape suffixes: B utterances, T samples, C classes, L languages.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lakd_ray.audio import Wave
from lakd_ray.models import Card, EmotionClassifier, Outputs, load, pad

# Waves of similar length are run together up to this many padded seconds, so that little is spent on padding.
_BATCH_SAMPLES = 60 * 16_000

Languages = Sequence[str | None] | None


class Predictor:
    """A checkpoint in eval mode.

    Attributes:
        emotions: classes in the order of the logits.
        languages: languages it was trained on.
        hears: languages that it knows apart, if it is a language-aware student.
        model_id: names the checkpoint in answers and tables.
    """

    def __init__(self, model: EmotionClassifier, card: Card) -> None:
        self._model = model.eval()
        self.card = card
        self.emotions = card.emotions
        self.languages = card.languages
        self.hears = model.languages
        self.model_id = card.model_id

    @classmethod
    def load(cls, location: str, *, threads: int | None = None) -> "Predictor":
        """Read a checkpoint folder.

        Args:
            location: path or s3:// location of a sealed checkpoint folder.
            threads: torch's CPU threads for this process, unchanged if None.

        Raises:
            StorageError, CheckpointError: the folder cannot be trusted.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        predictor = cls(*load(location))
        if torch.cuda.is_available():
            predictor._model.to("cuda")
        return predictor

    def logits(self, waves: Sequence[Wave], languages: Languages = None) -> npt.NDArray[np.float32]:
        """Logits of 16 kHz mono waves, shape [B, C]; each independent of the others.

        Args:
            languages: for a language-aware student, each wave's language; where it is None, what the student hears.
                A language that it has not learned is unknown to it.
        """
        return self.answer(waves, languages)[0]

    def answer(
        self, waves: Sequence[Wave], languages: Languages = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """Logits as above, and a language-aware student's logits over its languages, shape [B, L]; else None."""
        logits_BC = np.empty((len(waves), len(self.emotions)), dtype=np.float32)
        heard = self.hears
        languages_BL = np.empty((len(waves), len(heard)), dtype=np.float32)
        codes = languages if languages is not None else [None] * len(waves)
        order = sorted(range(len(waves)), key=lambda index: -len(waves[index]))
        while order:
            fits = max(1, _BATCH_SAMPLES // max(1, len(waves[order[0]])))
            chosen, order = order[:fits], order[fits:]
            outputs = self._forward([waves[index] for index in chosen], [codes[index] for index in chosen])
            logits_BC[chosen] = outputs.logits_BC.float().cpu().numpy()
            if outputs.language_logits_BL is not None:
                languages_BL[chosen] = outputs.language_logits_BL.float().cpu().numpy()
        return logits_BC, languages_BL if heard else None

    def probabilities(self, waves: Sequence[Wave], languages: Languages = None) -> npt.NDArray[np.float32]:
        """Class probabilities of 16 kHz mono waves, shape [B, C]."""
        return softmax(self.logits(waves, languages))

    @torch.inference_mode()
    def _forward(self, waves: list[Wave], codes: list[str | None]) -> Outputs:
        device = next(self._model.parameters()).device
        wave_BT, lengths_B = pad([torch.from_numpy(wave_T) for wave_T in waves])
        languages_B = self._model.language_ids(codes).to(device)
        outputs: Outputs = self._model(wave_BT.to(device), lengths_B.to(device), languages_B)
        return outputs


def softmax(logits_BC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities over the last axis."""
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=-1, keepdims=True))
    return np.asarray(shifted_BC / shifted_BC.sum(axis=-1, keepdims=True), dtype=np.float32)
