"""Logits of many utterances by many models, computed with Ray Data, for teacher logits and evaluation.

The audio is read and decoded once for all models; each actor holds all of them.

Shape suffixes: B utterances of a batch, R rows of the result, C classes, L languages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from lakd_ray.cluster import evaluation_request, free_nodes
from lakd_ray.config import Experiment, ExternalTeacherConfig
from lakd_ray.data.batch_plan import plan_evaluation_epoch
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.data.reader import ShardSource, build_dataset, stream_batches, unpack_signals
from lakd_ray.errors import DataError
from lakd_ray.inference.predictor import Predictor, predict_with_models
from lakd_ray.progress import progress_bar

LanguageCondition = Literal["given", "identified", "unknown", "wrong"]
"""The language input of a language-aware student: the true language, None (the student identifies it), UNKNOWN, or a
wrong language."""


@dataclass(frozen=True)
class ModelQuery:
    """A model to run, and the language input it gets."""

    checkpoint: str | ExternalTeacherConfig
    condition: LanguageCondition = "given"


@dataclass(frozen=True)
class InferenceResult:
    """Outputs of one model for R rows."""

    logits_RC: npt.NDArray[np.float32]
    """In the order of the experiment's classes."""
    predicted_language_R: npt.NDArray[np.object_]
    """Code of the identified language; None for models that do not identify languages."""


class _InferenceActor:
    """A Ray Data actor that holds the models."""

    def __init__(
        self,
        queries: dict[str, ModelQuery],
        source: ShardSource,
        threads: int,
        language_codes: list[str],
        emotions: Sequence[str],
    ) -> None:
        self._source, self._queries, self._language_codes = source, queries, language_codes
        checkpoints = {str(query.checkpoint): query.checkpoint for query in queries.values()}
        self._predictors = {
            name: Predictor.load(checkpoint, emotions=emotions, threads=threads)
            for name, checkpoint in checkpoints.items()
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        waves = unpack_signals(table, self._source)
        languages = [self._language_codes[row] for row in table["rows"][0].as_py()]
        queries = {}
        for name, query in self._queries.items():
            predictor = self._predictors[str(query.checkpoint)]
            hints = language_hints(languages, query.condition, predictor.identifiable_languages)
            queries[name] = predictor, hints
        columns = {}
        for name, (logits_BC, language_logits_BL) in predict_with_models(waves, queries).items():
            codes = queries[name][0].identifiable_languages
            identified_B = (
                [None] * len(waves)
                if language_logits_BL is None
                else [codes[index] for index in language_logits_BL.argmax(axis=1)]
            )
            columns[name] = pa.array([logits_BC.reshape(-1)], type=pa.list_(pa.float32()))
            columns[f"language {name}"] = pa.array([identified_B], type=pa.list_(pa.string()))
        return pa.table({"rows": table["rows"], **columns})


def language_hints(
    true_languages: Sequence[str], condition: LanguageCondition, known_languages: Sequence[str]
) -> list[str | None]:
    """Return the language input of a student for utterances in `true_languages`.

    Args:
        known_languages: languages of the student; the wrong language is the next one after the true language.
    """
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
    """Return the outputs of each model for some rows, in the order of `rows`.

    Args:
        queries: by name; a model may be queried under several conditions.
        title: text of the progress bar.

    Raises:
        DataError: a row is missing from the output or has logits that are not finite, or a model has other classes
            than the experiment.
    """
    read_groups = list(plan_evaluation_epoch(manifest, rows, config.batch).read_groups[0])
    source, train = ShardSource(manifest.shards), config.train
    bundle = evaluation_request(config).bundle
    node = max(free_nodes(), key=lambda node: (node.capacity(bundle), node.cpus)).id
    tables = build_dataset(manifest, read_groups, source, train.total_reader_cpus(train.workers), node).map_batches(
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
        num_cpus=bundle.cpus,
        num_gpus=bundle.gpus,
    )
    index_of = {int(row): index for index, row in enumerate(rows)}
    shape = (len(rows), len(config.emotions))
    results = {
        name: InferenceResult(np.full(shape, np.nan, dtype=np.float32), np.full(len(rows), None, dtype=object))
        for name in queries
    }
    count = 0
    with progress_bar(len(rows), title, "utterance") as bar:
        for table in tables.iter_batches(batch_size=1, batch_format="pyarrow"):
            indices = [index_of[row] for row in table["rows"][0].as_py()]
            for name, result in results.items():
                flat = np.asarray(table[name][0].as_py(), dtype=np.float32)
                result.logits_RC[indices] = flat.reshape(len(indices), -1)
                result.predicted_language_R[indices] = table[f"language {name}"][0].as_py()
            count += len(indices)
            bar.update(len(indices))
    if count != len(rows) or any(np.isnan(result.logits_RC).any() for result in results.values()):
        raise DataError(
            f"{title}: found logits of {count} utterances, expected finite logits of {len(rows)}; run the stage again"
        )
    return results


def run_rank_inference(
    config: Experiment,
    manifest: Manifest,
    rows: RowIndices,
    checkpoints: Mapping[str, str | ExternalTeacherConfig],
    rank: int,
    world_size: int,
    source: ShardSource | None = None,
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]:
    """Run the models on one rank's share of the rows in this process, while Ray Data reads and decodes.

    Args:
        source: cached features of the models' common frontend; the shards' audio if None.

    Returns:
        Indices into `rows`, shape [R], and each model's logits in the order of the experiment's classes, shape [R, C].

    Raises:
        DataError: a model has other classes than the experiment.
    """
    predictors = {
        name: Predictor.load(checkpoint, emotions=config.emotions, device=config.train.device)
        for name, checkpoint in checkpoints.items()
    }
    read_groups = plan_evaluation_epoch(manifest, rows, config.batch, world_size=world_size).read_groups[rank]
    logits: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in checkpoints}
    batch_rows: list[RowIndices] = [np.empty(0, dtype=np.int64)]
    cpus = config.train.reader_cpus_per_worker
    for batch in stream_batches(manifest, read_groups, source=source, num_cpus=cpus, num_readers=world_size):
        batch_rows.append(batch.rows)
        if source is None:
            outputs = predict_with_models(batch.signals, {name: (model, None) for name, model in predictors.items()})
        for name, predictor in predictors.items():
            logits[name].append(outputs[name][0] if source is None else predictor.logits_from_features(batch.signals))
    empty_RC = np.empty((0, len(config.emotions)), dtype=np.float32)
    order = np.argsort(rows)
    indices = order[np.searchsorted(rows[order], np.concatenate(batch_rows))]
    return indices, {name: np.concatenate([empty_RC, *parts]) for name, parts in logits.items()}
