"""Logits of many utterances by many models, by Ray Data: teacher logits, evaluation and bulk prediction alike.

The audio is read and decoded once for all models; each actor holds them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from tqdm import tqdm

from lakd_ray.config import Experiment, ExternalTeacherConfig
from lakd_ray.data.batch_plan import plan_evaluation_epoch
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.reader import ShardSource, build_dataset, stream_batches, unpack_signals
from lakd_ray.errors import DataError
from lakd_ray.inference.predictor import Predictor, predict_with_models

LanguageCondition = Literal["given", "identified", "unknown", "wrong"]
"""What a language-aware student is told about an utterance's language: the truth, nothing and it is to hear it, that it
is none that it knows, or another one."""


@dataclass(frozen=True)
class ModelQuery:
    """A model that is asked, and how."""

    checkpoint: str | ExternalTeacherConfig
    condition: LanguageCondition = "given"


@dataclass(frozen=True)
class InferenceResult:
    """What a model said about R rows."""

    logits_RC: npt.NDArray[np.float32]
    predicted_language_R: npt.NDArray[np.int64]
    """Position of the language that it heard among those it knows; -1 from models that do not listen for it."""


class _InferenceActor:
    """Holds models in a Ray Data actor."""

    def __init__(
        self,
        queries: dict[str, ModelQuery],
        source: ShardSource,
        threads: int,
        language_codes: list[str],
        emotions: Sequence[str],
    ) -> None:
        self._source, self._queries, self._language_codes = source, queries, language_codes
        places = {str(one.checkpoint): one.checkpoint for one in queries.values()}
        self._predictors = {
            name: Predictor.load(place, emotions=emotions, threads=threads) for name, place in places.items()
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        waves = unpack_signals(table, self._source)
        codes = [self._language_codes[row] for row in table["rows"][0].as_py()]
        asked = {}
        for name, one in self._queries.items():
            predictor = self._predictors[str(one.checkpoint)]
            asked[name] = predictor, language_hints(codes, one.condition, predictor.identifiable_languages)
        columns = {}
        for name, (logits_BC, languages_BL) in predict_with_models(waves, asked).items():
            heard_B = np.full(len(waves), -1) if languages_BL is None else languages_BL.argmax(axis=1)
            columns[name] = pa.array([logits_BC.reshape(-1)], type=pa.list_(pa.float32()))
            columns[f"language {name}"] = pa.array([heard_B], type=pa.list_(pa.int64()))
        return pa.table({"rows": table["rows"], **columns})


def language_hints(
    true_languages: Sequence[str], condition: LanguageCondition, known_languages: Sequence[str]
) -> list[str | None]:
    """What a student of some languages is told about utterances in these."""
    if condition == "identified":
        return [None] * len(true_languages)
    if condition == "unknown":
        return [""] * len(true_languages)
    if condition == "wrong":
        known = list(known_languages)
        return [known[(known.index(code) + 1) % len(known)] if code in known else known[0] for code in true_languages]
    return list(true_languages)


def run_batch_inference(
    config: Experiment, manifest: Manifest, rows: RowIndices, queries: Mapping[str, ModelQuery], *, title: str
) -> dict[str, InferenceResult]:
    """What each model says about some rows, in the order of `rows`.

    Args:
        asked: by name; one model may be asked in several ways.
        title: shown beside the progress bar.

    Raises:
        DataError: not every row came back exactly once.
    """
    windows = list(plan_evaluation_epoch(manifest, rows, config.batch).read_groups[0])
    source = ShardSource(manifest.shards)
    scored = build_dataset(manifest, windows, source).map_batches(
        _InferenceActor,
        fn_constructor_kwargs={
            "queries": dict(queries),
            "source": source,
            "threads": config.train.cpus_per_worker,
            "language_codes": [str(code) for code in manifest.languages_N],
            "emotions": config.emotions,
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.train.workers),
        num_cpus=config.train.cpus_per_worker,
        num_gpus=1 if config.train.gpu else 0,
    )
    position = {int(row): index for index, row in enumerate(rows)}
    shape = (len(rows), len(config.emotions))
    found = {
        name: InferenceResult(np.full(shape, np.nan, dtype=np.float32), np.full(len(rows), -1, dtype=np.int64))
        for name in queries
    }
    count = 0
    with tqdm(total=len(rows), desc=title, unit="utt", mininterval=2) as bar:
        for table in scored.iter_batches(batch_size=1, batch_format="pyarrow"):
            places = [position[row] for row in table["rows"][0].as_py()]
            for name, answers in found.items():
                flat = np.asarray(table[name][0].as_py(), dtype=np.float32)
                answers.logits_RC[places] = flat.reshape(len(places), -1)
                answers.predicted_language_R[places] = table[f"language {name}"][0].as_py()
            count += len(places)
            bar.update(len(places))
    if count != len(rows) or any(np.isnan(answers.logits_RC).any() for answers in found.values()):
        raise DataError(f"{title}: {len(rows)} utterances were asked for, {count} came back or have no finite logits")
    return found


def run_rank_inference(
    config: Experiment,
    manifest: Manifest,
    rows: RowIndices,
    checkpoints: Mapping[str, str | ExternalTeacherConfig],
    rank: int,
    world_size: int,
    source: ShardSource | None = None,
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]:
    """One rank's share of the rows, answered in this process while Ray Data reads and decodes.

    Args:
        source: cached features of these models' first step, if there are any.

    Returns:
        Positions in `rows`, shape [R], and each model's logits, shape [R, C].
    """
    predictors = {name: Predictor.load(place, emotions=config.emotions) for name, place in checkpoints.items()}
    windows = plan_evaluation_epoch(manifest, rows, config.batch, world_size=world_size).read_groups[rank]
    answers: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in checkpoints}
    answered: list[RowIndices] = [np.empty(0, dtype=np.int64)]
    for batch in stream_batches(manifest, windows, source=source, num_readers=world_size):
        answered.append(batch.rows)
        if source is None:
            found = predict_with_models(batch.signals, {name: (one, None) for name, one in predictors.items()})
        for name, predictor in predictors.items():
            answers[name].append(found[name][0] if source is None else predictor.logits_from_features(batch.signals))
    empty_RC = np.empty((0, len(config.emotions)), dtype=np.float32)
    order = np.argsort(rows)
    places = order[np.searchsorted(rows[order], np.concatenate(answered))]
    return places, {name: np.concatenate([empty_RC, *parts]) for name, parts in answers.items()}
