"""Load the manifest into arrays with one entry per utterance, for planning and lookups.

Shape suffixes: N utterances.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import speaker_aliases, split_checks, splits
from lakd_ray.data.provenance import DataExposure

RowIndices = npt.NDArray[np.int64]

SHARDS_FOLDER = "shards"
FEATURES_FOLDER = "features"
MANIFEST_FILE = "manifest.parquet"


@dataclass(frozen=True)
class Manifest:
    """Hold an experiment's utterances, with rows numbered as in the manifest file.

    Attributes:
        table: the manifest, see `lakd_ray.data.schema.MANIFEST_SCHEMA`.
        labels_N: class index of each utterance, -1 if the experiment does not use its emotion.
        splits_N: `train`, `dev`, `test`, or empty if the experiment does not use the utterance.
        shards: location of each shard file; `shard_N` indexes it.
        datasets: the public dataset of each corpus that is a copy or part of one.
        other_names: the other names of speakers who have several, see `lakd_ray.data.speaker_aliases`.
    """

    table: pa.Table
    labels_N: npt.NDArray[np.int64]
    splits_N: npt.NDArray[np.str_]
    languages_N: npt.NDArray[np.object_]
    num_samples_N: npt.NDArray[np.int64]
    shards: tuple[str, ...]
    shard_N: npt.NDArray[np.int64]
    row_group_N: npt.NDArray[np.int64]
    row_N: npt.NDArray[np.int64]
    datasets: Mapping[str, str] = field(default_factory=dict)
    other_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Utterance ids in the order of the rows."""
        return list(self.table["utterance"].to_pylist())

    @cached_property
    def digest(self) -> str:
        """Hash of everything that training depends on: the recordings and their labels."""
        digest = hashlib.sha256()
        for column in ("utterance", "audio_sha256", "emotion", "language", "speaker"):
            digest.update("\n".join(self.table[column].to_pylist()).encode())
        return digest.hexdigest()[:16]

    def rows(self, split: str, languages: Sequence[str] | None = None) -> RowIndices:
        """Return the row numbers of a split, optionally of some languages only."""
        selected = self.splits_N == split
        if languages is not None:
            selected &= np.isin(self.languages_N.astype(str), list(languages))
        return np.flatnonzero(selected)

    def speaker_folds(self, rows: RowIndices, num_cross_fit_folds: int) -> RowIndices:
        """Return the cross-fitting fold of each row, shape [len(rows)]; all rows of a speaker are in the same fold."""
        return splits.speaker_folds(self.table, rows, num_cross_fit_folds)

    def sentence_in_train(self, rows: RowIndices) -> list[bool | None]:
        """Return whether the sentence of each row also occurs in train; None if the corpus has no sentences.

        Splits never share speakers, but do share sentences of acted corpora: such results do not show how well a model
        generalizes to new sentences.
        """
        columns = ("corpus", "language", "sentence")
        texts = list(zip(*(self.table[name].to_pylist() for name in columns), strict=True))
        train = {texts[row] for row in self.rows("train")}
        return [None if texts[row][2] is None else texts[row] in train for row in rows]

    def data_exposure(self, rows: RowIndices) -> DataExposure:
        """Return the speakers, under all of their names, and the recordings of some rows."""
        has_acoustic = "acoustic_fingerprint" in self.table.column_names
        columns = ["speaker", "audio_sha256", *(["acoustic_fingerprint"] if has_acoustic else [])]
        part = self.table.select(columns).take(rows)
        known = self.speaker_exposure(part["speaker"].unique().to_pylist())
        return DataExposure(
            speakers=known.speakers,
            audio=frozenset(part["audio_sha256"].to_pylist()),
            acoustic=frozenset(part["acoustic_fingerprint"].drop_null().to_pylist()) if has_acoustic else frozenset(),
            datasets=known.datasets,
        )

    def speaker_exposure(self, speakers: Iterable[str]) -> DataExposure:
        """Return some speakers under all of their names, without recordings."""
        first = list(speakers)
        names = [*first, *(other for name in first for other in self.other_names.get(name, ()))]
        return DataExposure(frozenset(names), datasets=frozenset(filter(None, map(self._dataset_speaker, names))))

    @cached_property
    def evaluated_data(self) -> dict[str, DataExposure]:
        """The data of the splits on which models are evaluated: dev, which selects epochs, and test."""
        return {split: self.data_exposure(self.rows(split)) for split in ("dev", "test")}

    def dataset_speakers(self, corpus: str) -> set[str]:
        """Return the names of a corpus's speakers in its public dataset; empty if that is not known."""
        names = self.speaker_exposure(self.table["speaker"].unique().to_pylist()).speakers
        own = (name for name in names if name.partition(":")[0] == corpus)
        return set(filter(None, map(self._dataset_speaker, own)))

    def _dataset_speaker(self, speaker: str) -> str | None:
        """Return the name of a speaker in the public dataset of its corpus, if that is known."""
        corpus, _, name = speaker.partition(":")
        return f"{self.datasets[corpus]}:{name}" if corpus in self.datasets else None


def read_manifest_table(config: Experiment) -> pa.Table:
    """Read the manifest, in which every person has one name.

    Raises:
        StorageError: the prepare stage has not run.
        ConfigError: `speaker_aliases` has a name that is not in the manifest.
    """
    table = storage.read_table(storage.join(config.stage_folder("prepare"), MANIFEST_FILE))
    return speaker_aliases.merge_speakers(table, config)


def load_manifest(config: Experiment) -> Manifest:
    """Load the output of the prepare stage, and split it for the experiment's fold.

    Raises:
        StorageError: the prepare stage has not run.
        SplitError: the fold cannot be built, or its splits share speakers or recordings.
    """
    folder = config.stage_folder("prepare")
    table = read_manifest_table(config)
    splits_N = np.asarray(splits.assign_splits(table, config, config.fold)).astype(str)
    split_checks.check_splits(table, splits_N, config)
    shard_names, shard_N = _index_shards(table)
    index = {emotion: number for number, emotion in enumerate(config.emotions)}
    return Manifest(
        table=table,
        labels_N=np.array([index.get(emotion, -1) for emotion in table["emotion"].to_pylist()], dtype=np.int64),
        splits_N=splits_N,
        languages_N=np.asarray(table["language"].to_pylist(), dtype=object),
        num_samples_N=_int_column(table, "num_samples"),
        shards=tuple(
            storage.confine(storage.join(folder, SHARDS_FOLDER), name, allow_links=True) for name in shard_names
        ),
        shard_N=shard_N,
        row_group_N=_int_column(table, "row_group"),
        row_N=_int_column(table, "row"),
        datasets={corpus.name: corpus.public_dataset for corpus in config.corpora if corpus.public_dataset},
        other_names=config.speaker_aliases,
    )


def _index_shards(table: pa.Table) -> tuple[list[str], RowIndices]:
    """Return the names of the shards and each row's shard index, in an order that depends on the audio alone.

    A shard's name depends on file times of its recordings; the order of training must not.
    """
    first: dict[str, str] = {}
    rows = list(zip(table["shard"].to_pylist(), table["audio_sha256"].to_pylist(), strict=True))
    for shard, audio in rows:
        first[shard] = min(audio, first.get(shard, audio))
    names = sorted(first, key=lambda shard: (first[shard], shard))
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number[shard] for shard, _ in rows], dtype=np.int64)


def _int_column(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return np.asarray(table[column].to_numpy(), dtype=np.int64)
