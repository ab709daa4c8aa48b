"""Accuracy of a backend, compared with torch in fp32 on the same held-out utterances.

Shape suffixes: N utterances, C classes, L languages.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics, storage
from lakd_ray.audio import Wave, decode_flac, to_float
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data.provenance import DataExposure
from lakd_ray.errors import DataError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import class_indices
from lakd_ray.models import CheckpointMetadata


@dataclass(frozen=True)
class EvalSet:
    """Utterances with their languages and labels, which are indices in the model's classes."""

    waves_N: list[Wave]
    languages_N: list[str]
    labels_N: npt.NDArray[np.int64]

    @property
    def audio_seconds(self) -> float:
        """Total duration of the utterances."""
        return sum(map(len, self.waves_N)) / 16_000


@dataclass(frozen=True)
class BackendAccuracy:
    """Scores of a backend, compared with torch in fp32."""

    utterances: int
    UR: float
    """Unweighted recall of torch in fp32."""
    UR_backend: float
    """Unweighted recall of the backend."""
    changed_predictions: int
    """Utterances with a different most probable class."""
    max_probability_change: float
    """Largest change of the probability of a class."""


def load_test_set(config: Experiment, metadata: CheckpointMetadata) -> EvalSet:
    """Return the test utterances of an experiment's fold in the languages of a checkpoint.

    Raises:
        StorageError: the experiment's `prepare` has not run.
        DataLeakageError: the checkpoint was trained on or selected with some of them.
        DataError: there is no such utterance, or the experiment has different classes.
    """
    class_of_label = np.array(metadata.class_indices(config.emotions))
    manifest = manifests.load_manifest(config)
    rows = manifest.rows("test", metadata.languages)
    if not len(rows):
        raise DataError(
            f"{config.name} has no test utterance in {', '.join(metadata.languages)}, the languages of "
            f"{metadata.model_id}; give the experiment that trained it"
        )
    metadata.provenance.check_leakage(model=metadata.model_id, dev=DataExposure(), test=manifest.data_exposure(rows))
    waves: dict[str, Wave] = {}
    ids = manifest.ids
    selected = {ids[row] for row in rows}
    for shard in sorted(set(manifest.shard_N[rows].tolist())):
        table = storage.read_table(manifest.shards[shard], columns=["utterance", "audio"])
        for utterance, content in zip(table["utterance"].to_pylist(), table["audio"].to_pylist(), strict=True):
            if utterance in selected:
                waves[utterance] = to_float(decode_flac(content))
    return EvalSet(
        [waves[ids[row]] for row in rows],
        manifest.languages_N[rows].astype(str).tolist(),
        class_of_label[manifest.labels_N[rows]],
    )


def compare_backends(reference: Predictor, candidate: Predictor, eval_set: EvalSet) -> BackendAccuracy:
    """Compare the probabilities of two backends of a model, with the true language of each utterance as input."""
    reference_NC = reference.probabilities(eval_set.waves_N, eval_set.languages_N)
    candidate_NC = candidate.probabilities(eval_set.waves_N, eval_set.languages_N)
    candidate_NC = candidate_NC[:, class_indices(candidate.emotions, reference.emotions, context=candidate.model_id)]
    UR, UR_backend = (
        metrics.compute_scores(probabilities_NC, eval_set.labels_N, reference.emotions).UR
        for probabilities_NC in (reference_NC, candidate_NC)
    )
    return BackendAccuracy(
        utterances=len(eval_set.waves_N),
        UR=UR,
        UR_backend=UR_backend,
        changed_predictions=int((reference_NC.argmax(axis=1) != candidate_NC.argmax(axis=1)).sum()),
        max_probability_change=float(np.abs(reference_NC - candidate_NC).max()),
    )
