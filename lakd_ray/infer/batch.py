"""Logits of many utterances by many models, by Ray Data: teacher logits, evaluation and bulk prediction alike.

The audio is read and decoded once for all models; each actor holds them all.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
from tqdm import tqdm

from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.plan import evaluation_epoch
from lakd_ray.data.stream import Source, dataset, stream, unpack
from lakd_ray.errors import DataError
from lakd_ray.infer.predictor import Predictor


class _Scorer:
    """Holds models in a Ray Data actor."""

    def __init__(self, checkpoints: dict[str, str], source: Source, threads: int) -> None:
        self._source = source
        self._predictors = {name: Predictor.load(location, threads=threads) for name, location in checkpoints.items()}

    def __call__(self, table: pa.Table) -> pa.Table:
        waves = unpack(table, self._source)
        columns = {
            name: pa.array([predictor.logits(waves).reshape(-1)], type=pa.list_(pa.float32()))
            for name, predictor in self._predictors.items()
        }
        return pa.table({"rows": table["rows"], **columns})


def logits(
    config: Experiment, manifest: Manifest, rows: Rows, checkpoints: Mapping[str, str], *, title: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Logits of some rows by each model, shape [len(rows), C], in the order of `rows`.

    Args:
        checkpoints: model name -> checkpoint folder.
        title: shown beside the progress bar.

    Raises:
        DataError: not every row came back exactly once.
    """
    windows = list(evaluation_epoch(manifest, rows, config.batch).windows[0])
    source = Source(manifest.shards)
    scored = dataset(manifest, windows, source).map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "checkpoints": dict(checkpoints),
            "source": source,
            "threads": config.train.cpus_per_worker,
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=config.train.workers),
        num_cpus=config.train.cpus_per_worker,
        num_gpus=1 if config.train.gpu else 0,
    )
    position = {int(row): index for index, row in enumerate(rows)}
    found = {name: np.full((len(rows), len(config.emotions)), np.nan, dtype=np.float32) for name in checkpoints}
    count = 0
    with tqdm(total=len(rows), desc=title, unit="utt", mininterval=2) as bar:
        for table in scored.iter_batches(batch_size=1, batch_format="pyarrow"):
            places = [position[row] for row in table["rows"][0].as_py()]
            for name, array_RC in found.items():
                array_RC[places] = np.asarray(table[name][0].as_py(), dtype=np.float32).reshape(len(places), -1)
            count += len(places)
            bar.update(len(places))
    if count != len(rows) or any(np.isnan(array_RC).any() for array_RC in found.values()):
        raise DataError(f"{title}: {len(rows)} utterances were asked for, {count} came back or have no finite logits")
    return found


def logits_here(
    config: Experiment, manifest: Manifest, rows: Rows, checkpoints: Mapping[str, str], rank: int, world: int
) -> tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]:
    """One rank's share of the rows, answered in this process while Ray Data reads and decodes.

    Returns:
        Positions in `rows`, shape [R], and each model's logits, shape [R, C].
    """
    predictors = {name: Predictor.load(location) for name, location in checkpoints.items()}
    windows = evaluation_epoch(manifest, rows, config.batch, world=world).windows[rank]
    answers: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in checkpoints}
    answered: list[Rows] = [np.empty(0, dtype=np.int64)]
    for batch in stream(manifest, windows, readers=world):
        answered.append(batch.rows)
        for name, predictor in predictors.items():
            answers[name].append(predictor.logits(batch.signals))
    empty_RC = np.empty((0, len(config.emotions)), dtype=np.float32)
    order = np.argsort(rows)
    places = order[np.searchsorted(rows[order], np.concatenate(answered))]
    return places, {name: np.concatenate([empty_RC, *parts]) for name, parts in answers.items()}
