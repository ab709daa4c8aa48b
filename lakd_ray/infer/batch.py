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

from lakd_ray.config import Brought, Experiment
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.plan import evaluation_epoch
from lakd_ray.data.stream import Source, dataset, stream, unpack
from lakd_ray.errors import DataError
from lakd_ray.infer.predictor import Predictor, answer_together

Condition = Literal["given", "identified", "unknown", "wrong"]
"""What a language-aware student is told about an utterance's language: the truth, nothing and it is to hear it, that it
is none that it knows, or another one."""


@dataclass(frozen=True)
class Asked:
    """A model that is asked, and how."""

    checkpoint: str | Brought
    condition: Condition = "given"


@dataclass(frozen=True)
class Answers:
    """What a model said about R rows."""

    logits_RC: npt.NDArray[np.float32]
    heard_R: npt.NDArray[np.int64]
    """Position of the language that it heard among those it knows; -1 from models that do not listen for it."""


class _Scorer:
    """Holds models in a Ray Data actor."""

    def __init__(
        self, asked: dict[str, Asked], source: Source, threads: int, codes: list[str], emotions: Sequence[str]
    ) -> None:
        self._source, self._asked, self._codes = source, asked, codes
        places = {str(one.checkpoint): one.checkpoint for one in asked.values()}
        self._predictors = {
            name: Predictor.load(place, emotions=emotions, threads=threads) for name, place in places.items()
        }

    def __call__(self, table: pa.Table) -> pa.Table:
        waves = unpack(table, self._source)
        codes = [self._codes[row] for row in table["rows"][0].as_py()]
        asked = {}
        for name, one in self._asked.items():
            predictor = self._predictors[str(one.checkpoint)]
            asked[name] = predictor, told(codes, one.condition, predictor.hears)
        columns = {}
        for name, (logits_BC, languages_BL) in answer_together(waves, asked).items():
            heard_B = np.full(len(waves), -1) if languages_BL is None else languages_BL.argmax(axis=1)
            columns[name] = pa.array([logits_BC.reshape(-1)], type=pa.list_(pa.float32()))
            columns[f"heard {name}"] = pa.array([heard_B], type=pa.list_(pa.int64()))
        return pa.table({"rows": table["rows"], **columns})


def told(codes: Sequence[str], condition: Condition, languages: Sequence[str]) -> list[str | None]:
    """What a student of some languages is told about utterances in these."""
    if condition == "identified":
        return [None] * len(codes)
    if condition == "unknown":
        return [""] * len(codes)
    if condition == "wrong":
        known = list(languages)
        return [known[(known.index(code) + 1) % len(known)] if code in known else known[0] for code in codes]
    return list(codes)


def logits(
    config: Experiment, manifest: Manifest, rows: Rows, asked: Mapping[str, Asked], *, title: str
) -> dict[str, Answers]:
    """What each model says about some rows, in the order of `rows`.

    Args:
        asked: by name; one model may be asked in several ways.
        title: shown beside the progress bar.

    Raises:
        DataError: not every row came back exactly once.
    """
    windows = list(evaluation_epoch(manifest, rows, config.batch).windows[0])
    source = Source(manifest.shards)
    scored = dataset(manifest, windows, source).map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "asked": dict(asked),
            "source": source,
            "threads": config.train.cpus_per_worker,
            "codes": [str(code) for code in manifest.languages_N],
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
        name: Answers(np.full(shape, np.nan, dtype=np.float32), np.full(len(rows), -1, dtype=np.int64))
        for name in asked
    }
    count = 0
    with tqdm(total=len(rows), desc=title, unit="utt", mininterval=2) as bar:
        for table in scored.iter_batches(batch_size=1, batch_format="pyarrow"):
            places = [position[row] for row in table["rows"][0].as_py()]
            for name, answers in found.items():
                flat = np.asarray(table[name][0].as_py(), dtype=np.float32)
                answers.logits_RC[places] = flat.reshape(len(places), -1)
                answers.heard_R[places] = table[f"heard {name}"][0].as_py()
            count += len(places)
            bar.update(len(places))
    if count != len(rows) or any(np.isnan(answers.logits_RC).any() for answers in found.values()):
        raise DataError(f"{title}: {len(rows)} utterances were asked for, {count} came back or have no finite logits")
    return found


def logits_here(
    config: Experiment,
    manifest: Manifest,
    rows: Rows,
    checkpoints: Mapping[str, str | Brought],
    rank: int,
    world: int,
    source: Source | None = None,
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]:
    """One rank's share of the rows, answered in this process while Ray Data reads and decodes.

    Args:
        source: cached features of these models' first step, if there are any.

    Returns:
        Positions in `rows`, shape [R], and each model's logits, shape [R, C].
    """
    predictors = {name: Predictor.load(place, emotions=config.emotions) for name, place in checkpoints.items()}
    windows = evaluation_epoch(manifest, rows, config.batch, world=world).windows[rank]
    answers: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in checkpoints}
    answered: list[Rows] = [np.empty(0, dtype=np.int64)]
    for batch in stream(manifest, windows, source=source, readers=world):
        answered.append(batch.rows)
        if source is None:
            found = answer_together(batch.signals, {name: (one, None) for name, one in predictors.items()})
        for name, predictor in predictors.items():
            answers[name].append(found[name][0] if source is None else predictor.answer_features(batch.signals))
    empty_RC = np.empty((0, len(config.emotions)), dtype=np.float32)
    order = np.argsort(rows)
    places = order[np.searchsorted(rows[order], np.concatenate(answered))]
    return places, {name: np.concatenate([empty_RC, *parts]) for name, parts in answers.items()}
