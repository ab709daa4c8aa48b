"""What a backend costs in accuracy: the same held-out utterances by torch in fp32 and by it.

Shape suffixes: N utterances, C classes, L languages.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics, storage
from lakd_ray.audio import Wave, decode_flac, to_float
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.errors import DataError
from lakd_ray.infer.predictor import Predictor
from lakd_ray.models import Card
from lakd_ray.provenance import Seen


@dataclass(frozen=True)
class Clips:
    """Utterances with their truth."""

    waves_N: list[Wave]
    languages_N: list[str]
    labels_N: npt.NDArray[np.int64]

    @property
    def seconds(self) -> float:
        """Of audio."""
        return sum(map(len, self.waves_N)) / 16_000


@dataclass(frozen=True)
class Price:
    """One backend beside torch in fp32."""

    utterances: int
    UR: float
    """Unweighted recall of torch in fp32."""
    UR_here: float
    """Of the backend."""
    other_answers: int
    """Utterances whose most probable class is another one."""
    largest_change: float
    """Of a class's probability."""


def held_out(config: Experiment, card: Card) -> Clips:
    """The test utterances of an experiment's fold in the languages of a checkpoint.

    Raises:
        StorageError: the experiment's `prepare` has not run.
        HygieneError: the checkpoint has seen some of them.
        DataError: there are none, or the experiment has other classes.
    """
    if config.emotions != card.emotions:
        raise DataError(
            f"{card.model_id} has the classes {', '.join(card.emotions)}, {config.name} has "
            f"{', '.join(config.emotions)}: name the experiment that it was trained in"
        )
    manifest = manifests.load(config)
    rows = manifest.rows("test", card.languages)
    if not len(rows):
        raise DataError(f"{config.name} has no test utterance in {', '.join(card.languages)}, for {card.model_id}")
    card.provenance.check(model=card.model_id, dev=Seen(), test=manifest.seen(rows))
    waves: dict[str, Wave] = {}
    ids = manifest.ids
    wanted = {ids[row] for row in rows}
    for shard in sorted(set(manifest.shard_N[rows].tolist())):
        table = storage.read_table(manifest.shards[shard], columns=["utterance", "audio"])
        for utterance, content in zip(table["utterance"].to_pylist(), table["audio"].to_pylist(), strict=True):
            if utterance in wanted:
                waves[utterance] = to_float(decode_flac(content))
    return Clips(
        [waves[ids[row]] for row in rows],
        manifest.languages_N[rows].astype(str).tolist(),
        manifest.labels_N[rows],
    )


def price(plain: Predictor, other: Predictor, clips: Clips) -> Price:
    """What another backend of a model changes, each utterance's language given."""
    expected_NC = plain.probabilities(clips.waves_N, clips.languages_N)
    found_NC = other.probabilities(clips.waves_N, clips.languages_N)
    UR, UR_here = (
        metrics.score(probabilities_NC, clips.labels_N, plain.emotions).UR
        for probabilities_NC in (expected_NC, found_NC)
    )
    return Price(
        utterances=len(clips.waves_N),
        UR=UR,
        UR_here=UR_here,
        other_answers=int((expected_NC.argmax(axis=1) != found_NC.argmax(axis=1)).sum()),
        largest_change=float(np.abs(expected_NC - found_NC).max()),
    )
