"""Which utterances make which batch, on which rank, in which order: decided before anything is read.

Every rank computes the whole plan from (seed, epoch, world size) alone. So all know the global number of utterances in
a step, ranks take equally many steps, and a run can be continued from any point without reading what came before.

An epoch is a sequence of windows. A window is what one task reads at once: some Parquet row groups, whose utterances
are shuffled, roughly sorted by length and cut into batches under a budget of padded audio seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import BatchConfig
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import ConfigError

# Lengths are compared after a random stretch of up to a tenth, so that not the same neighbours meet in every epoch.
_LENGTH_JITTER = 0.1
# With fewer row groups than this for each rank, every rank reads all of them and takes its share of their rows.
_MIN_GROUPS_PER_RANK = 4


@dataclass(frozen=True)
class ReadGroup:
    """Row groups that one task reads, and the batches (arrays of manifest row numbers) it makes of them."""

    epoch: int
    split: str
    batches: tuple[RowIndices, ...]


@dataclass(frozen=True)
class EpochPlan:
    """The windows of each rank; for training, ranks have equally many batches."""

    read_groups: tuple[tuple[ReadGroup, ...], ...]

    def batches(self, rank: int) -> Iterator[RowIndices]:
        """One rank's batches in order."""
        for window in self.read_groups[rank]:
            yield from window.batches

    def utterances_per_step(self, gradient_accumulation_steps: int) -> list[int]:
        """Utterances in each optimizer step, all ranks together."""
        sizes = np.array([[len(batch) for batch in self.batches(rank)] for rank in range(len(self.read_groups))])
        return [int(count) for count in sizes.sum(axis=0).reshape(-1, gradient_accumulation_steps).sum(axis=1)]


def plan_training_epoch(
    manifest: Manifest,
    rows: RowIndices,
    batch: BatchConfig,
    *,
    seed: int,
    epoch: int,
    world_size: int,
    gradient_accumulation_steps: int = 1,
) -> EpochPlan:
    """Plan one pass over the training rows: each row once, or those of smaller languages more often (`language_sampling_alpha`).

    Raises:
        ConfigError: there are too few utterances for so many ranks and accumulated batches.
    """
    random = np.random.default_rng([seed, epoch])
    rows = _oversample_small_languages(manifest, rows, batch.language_sampling_alpha, random)
    shares = _assign_to_ranks(manifest, rows, world_size, random)
    ranks = [
        [
            _pack_shuffled(manifest, window, batch, random)
            for window in _split_into_read_groups(manifest, share, batch.shuffle_row_groups)
        ]
        for share in shares
    ]
    _equalize_batch_counts(ranks, gradient_accumulation_steps)
    return EpochPlan(
        tuple(tuple(ReadGroup(epoch, "train", tuple(window)) for window in windows if window) for windows in ranks)
    )


def plan_evaluation_epoch(
    manifest: Manifest, rows: RowIndices, batch: BatchConfig, *, epoch: int = 0, split: str = "dev", world_size: int = 1
) -> EpochPlan:
    """Plan one pass over evaluation rows, each row once; ranks may differ in their number of batches."""
    shares = _assign_to_ranks(manifest, rows, world_size, None)
    return EpochPlan(
        tuple(
            tuple(
                ReadGroup(
                    epoch, split, tuple(_pack(manifest, window[np.argsort(manifest.num_samples_N[window])], batch))
                )
                for window in _split_into_read_groups(manifest, share, batch.shuffle_row_groups)
            )
            for share in shares
        )
    )


def padded_and_unpadded_seconds(manifest: Manifest, batches: Sequence[RowIndices]) -> tuple[float, float]:
    """Audio seconds with padding, and without."""
    padded = sum(int(manifest.num_samples_N[batch].max()) * len(batch) for batch in batches)
    return padded / SAMPLE_RATE, sum(int(manifest.num_samples_N[batch].sum()) for batch in batches) / SAMPLE_RATE


def _oversample_small_languages(
    manifest: Manifest, rows: RowIndices, alpha: float, rng: np.random.Generator
) -> RowIndices:
    """Rows with those of smaller languages repeated, so that a language's share is as its number of rows to the alpha.

    None is left out: the largest language keeps its rows. The exponent is that of multilingual pretraining (Conneau et
    al. 2020), there by leaving out and repeating.
    """
    languages_N = manifest.languages_N[rows].astype(str)
    names, counts = np.unique(languages_N, return_counts=True)
    parts = [rows]
    for name, count in zip(names, counts, strict=True) if alpha < 1 else ():
        own = rows[languages_N == name]
        whole, rest = divmod(round(count * (counts.max() / count) ** (1 - alpha)) - count, count)
        parts += [own] * whole + [rng.permutation(own)[:rest]]
    return np.concatenate(parts)


def _assign_to_ranks(
    manifest: Manifest, rows: RowIndices, world_size: int, rng: np.random.Generator | None
) -> list[RowIndices]:
    """Each rank's rows: whole row groups while there are enough of them, else a share of every group's rows."""
    _, group_of_row = np.unique(
        np.stack([manifest.shard_N[rows], manifest.row_group_N[rows]]), axis=1, return_inverse=True
    )
    group_of_row = group_of_row.reshape(-1)
    groups = int(group_of_row.max(initial=-1)) + 1
    order = np.arange(groups) if rng is None else rng.permutation(groups)
    if groups < _MIN_GROUPS_PER_RANK * world_size:
        shuffled = rows if rng is None else rng.permutation(rows)
        return [shuffled[rank::world_size] for rank in range(world_size)]
    seconds = np.bincount(group_of_row, weights=manifest.num_samples_N[rows], minlength=groups)
    load = np.zeros(world_size)
    owner = np.empty(groups, dtype=np.int64)
    for group in order:
        owner[group] = int(load.argmin())
        load[owner[group]] += seconds[group]
    position = np.empty(groups, dtype=np.int64)
    position[order] = np.arange(groups)
    by_position = np.argsort(position[group_of_row], kind="stable")
    return [rows[by_position][owner[group_of_row[by_position]] == rank] for rank in range(world_size)]


def _split_into_read_groups(manifest: Manifest, rows: RowIndices, max_row_groups: int) -> list[RowIndices]:
    """Cut a rank's rows into windows of at most so many row groups, in the order in which the groups come."""
    if not len(rows):
        return []
    keys = manifest.shard_N[rows] * (1 + int(manifest.row_group_N.max())) + manifest.row_group_N[rows]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank_of_group = np.argsort(np.argsort(first))
    window_of_row = rank_of_group[inverse] // max_row_groups
    return [rows[window_of_row == window] for window in range(int(window_of_row.max()) + 1)]


def _pack_shuffled(
    manifest: Manifest, rows: RowIndices, batch: BatchConfig, rng: np.random.Generator
) -> list[RowIndices]:
    rows = rng.permutation(rows)
    stretch = 1 + _LENGTH_JITTER * rng.random(len(rows))
    batches = _pack(manifest, rows[np.argsort(manifest.num_samples_N[rows] * stretch, kind="stable")], batch)
    return [batches[index] for index in rng.permutation(len(batches))]


def _pack(manifest: Manifest, rows: RowIndices, batch: BatchConfig) -> list[RowIndices]:
    """Cut rows into batches under the budget; an utterance longer than the budget is a batch of its own."""
    budget = batch.max_padded_seconds * SAMPLE_RATE
    batches, start, longest = [], 0, 0
    for index, samples in enumerate(manifest.num_samples_N[rows]):
        longest = max(longest, int(samples))
        count = index - start + 1
        if count > 1 and (longest * count > budget or count > batch.max_utterances):
            batches.append(rows[start:index])
            start, longest = index, int(samples)
    return [*batches, rows[start:]] if len(rows) else []


def _equalize_batch_counts(rank_groups: list[list[list[RowIndices]]], gradient_accumulation_steps: int) -> None:
    """Give every rank equally many batches, a multiple of `accumulation`, in place.

    Batches beyond the common number move to ranks that have fewer; what is missing then comes from halving the largest.
    """
    counts = [sum(map(len, windows)) for windows in rank_groups]
    wanted = -(-sum(counts) // (len(rank_groups) * gradient_accumulation_steps)) * gradient_accumulation_steps
    spare: list[RowIndices] = []
    for windows in rank_groups:
        surplus = range(sum(map(len, windows)) - wanted)
        spare += [next(window for window in reversed(windows) if window).pop() for _ in surplus]
    for windows in rank_groups:
        missing = wanted - sum(map(len, windows))
        if moved := [spare.pop() for _ in range(min(missing, len(spare)))]:
            windows.append(moved)
        _split_largest(windows, wanted)


def _split_largest(groups: list[list[RowIndices]], target_count: int) -> None:
    """Halve a rank's largest batches, in place, until it has as many as the others."""
    missing = target_count - sum(map(len, groups))
    while missing > 0:
        sizes = [(len(batch), w, b) for w, window in enumerate(groups) for b, batch in enumerate(window)]
        size, w, b = max(sizes, default=(0, 0, 0), key=lambda entry: (entry[0], -entry[1], -entry[2]))
        if size < 2:
            raise ConfigError(
                f"a worker has {sum(entry[0] for entry in sizes)} utterances for {target_count} batches. Lower train.workers "
                "or train.gradient_accumulation_steps, or allow larger batches (batch.max_utterances, batch.max_padded_seconds)."
            )
        batch = groups[w][b]
        groups[w][b : b + 1] = [batch[: size // 2], batch[size // 2 :]]
        missing -= 1


def skip_batches(plan: EpochPlan, count: int) -> EpochPlan:
    """The epoch without each rank's first so many batches: what is left of it for a run that goes on."""
    ranks = []
    for windows in plan.read_groups:
        left, kept = count, []
        for window in windows:
            dropped = min(left, len(window.batches))
            left -= dropped
            if dropped < len(window.batches):
                kept.append(replace(window, batches=window.batches[dropped:]))
        ranks.append(tuple(kept))
    return EpochPlan(tuple(ranks))
