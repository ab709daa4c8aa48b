"""Plan the batches of an epoch before reading: their utterances, their ranks and their order.

Every rank computes the complete plan from (seed, epoch, world size) alone. So every rank knows the global number of
utterances in a step, all ranks take the same number of steps, and a run can resume at any batch without reading the
earlier ones.

An epoch is a sequence of read groups. One task reads one read group: a few Parquet row groups, whose utterances
are shuffled, roughly sorted by length and packed into batches under a budget of padded audio seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import BatchConfig
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import ConfigError

# Sorting scales each length by a random factor of up to 1.1, so that batches have different members in each epoch.
_LENGTH_JITTER = 0.1
# With fewer row groups per rank than this, every rank reads all row groups and takes its share of their rows.
_MIN_GROUPS_PER_RANK = 4


@dataclass(frozen=True)
class ReadGroup:
    """The batches, as arrays of manifest row numbers, whose row groups one task reads together."""

    epoch: int
    split: str
    batches: tuple[RowIndices, ...]


@dataclass(frozen=True)
class EpochPlan:
    """The read groups of each rank; in training all ranks have the same number of batches."""

    read_groups: tuple[tuple[ReadGroup, ...], ...]

    def batches(self, rank: int) -> Iterator[RowIndices]:
        """Yield the batches of one rank in order."""
        for window in self.read_groups[rank]:
            yield from window.batches

    def utterances_per_step(self, gradient_accumulation_steps: int) -> list[int]:
        """Return the number of utterances in each optimizer step, over all ranks."""
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
    """Plan one pass over the training rows, with rows of smaller languages repeated (`language_sampling_alpha`).

    Raises:
        ConfigError: there are too few utterances for the number of ranks and accumulated batches.
    """
    random = np.random.default_rng([seed, epoch])
    rows = _oversample_small_languages(manifest, rows, batch.language_sampling_alpha, random)
    shares = _assign_to_ranks(manifest, rows, world_size, random)
    ranks = [
        [
            _pack_shuffled(manifest, group_rows, batch, random)
            for group_rows in _split_into_read_groups(manifest, share, batch.shuffle_row_groups)
        ]
        for share in shares
    ]
    _equalize_batch_counts(ranks, gradient_accumulation_steps)
    return EpochPlan(
        tuple(tuple(ReadGroup(epoch, "train", tuple(group)) for group in groups if group) for groups in ranks)
    )


def plan_evaluation_epoch(
    manifest: Manifest, rows: RowIndices, batch: BatchConfig, *, epoch: int = 0, split: str = "dev", world_size: int = 1
) -> EpochPlan:
    """Plan one pass over evaluation rows, where the number of batches may differ between ranks."""
    shares = _assign_to_ranks(manifest, rows, world_size, None)
    return EpochPlan(
        tuple(
            tuple(
                ReadGroup(
                    epoch,
                    split,
                    tuple(_pack(manifest, group_rows[np.argsort(manifest.num_samples_N[group_rows])], batch)),
                )
                for group_rows in _split_into_read_groups(manifest, share, batch.shuffle_row_groups)
            )
            for share in shares
        )
    )


def padded_and_unpadded_seconds(manifest: Manifest, batches: Sequence[RowIndices]) -> tuple[float, float]:
    """Return the audio seconds of some batches, (with padding, without padding)."""
    padded = sum(int(manifest.num_samples_N[batch].max()) * len(batch) for batch in batches)
    return padded / SAMPLE_RATE, sum(int(manifest.num_samples_N[batch].sum()) for batch in batches) / SAMPLE_RATE


def _oversample_small_languages(
    manifest: Manifest, rows: RowIndices, alpha: float, rng: np.random.Generator
) -> RowIndices:
    """Repeat rows of smaller languages, so that a language's share is proportional to its number of rows to the alpha.

    No row is dropped, and the largest language is not repeated. The exponent is that of multilingual pretraining
    (Conneau et al. 2020), which also drops rows.
    """
    languages_N = manifest.languages_N[rows].astype(str)
    names, counts = np.unique(languages_N, return_counts=True)
    parts = [rows]
    for name, count in zip(names, counts, strict=True) if alpha < 1 else ():
        language_rows = rows[languages_N == name]
        repeats, rest = divmod(round(count * (counts.max() / count) ** (1 - alpha)) - count, count)
        parts += [language_rows] * repeats + [rng.permutation(language_rows)[:rest]]
    return np.concatenate(parts)


def _assign_to_ranks(
    manifest: Manifest, rows: RowIndices, world_size: int, rng: np.random.Generator | None
) -> list[RowIndices]:
    """Return each rank's rows: complete row groups if there are enough of them, else a share of every group."""
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
    """Split a rank's rows into read groups of at most `max_row_groups` row groups, in the order of their first rows."""
    if not len(rows):
        return []
    keys = manifest.shard_N[rows] * (1 + int(manifest.row_group_N.max())) + manifest.row_group_N[rows]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank_of_group = np.argsort(np.argsort(first))
    read_group_of_row = rank_of_group[inverse] // max_row_groups
    return [rows[read_group_of_row == index] for index in range(int(read_group_of_row.max()) + 1)]


def _pack_shuffled(
    manifest: Manifest, rows: RowIndices, batch: BatchConfig, rng: np.random.Generator
) -> list[RowIndices]:
    rows = rng.permutation(rows)
    stretch = 1 + _LENGTH_JITTER * rng.random(len(rows))
    batches = _pack(manifest, rows[np.argsort(manifest.num_samples_N[rows] * stretch, kind="stable")], batch)
    return [batches[index] for index in rng.permutation(len(batches))]


def _pack(manifest: Manifest, rows: RowIndices, batch: BatchConfig) -> list[RowIndices]:
    """Pack rows into batches under the budget; an utterance longer than the budget becomes its own batch."""
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
    """Give every rank the same number of batches, a multiple of `gradient_accumulation_steps`, in place.

    Batches above the common number move to ranks with fewer; then the largest batches are halved until all have it.
    """
    counts = [sum(map(len, groups)) for groups in rank_groups]
    target_count = -(-sum(counts) // (len(rank_groups) * gradient_accumulation_steps)) * gradient_accumulation_steps
    spare: list[RowIndices] = []
    for groups in rank_groups:
        surplus = range(sum(map(len, groups)) - target_count)
        spare += [next(group for group in reversed(groups) if group).pop() for _ in surplus]
    for groups in rank_groups:
        missing = target_count - sum(map(len, groups))
        if moved := [spare.pop() for _ in range(min(missing, len(spare)))]:
            groups.append(moved)
        _split_largest(groups, target_count)


def _split_largest(groups: list[list[RowIndices]], target_count: int) -> None:
    """Halve a rank's largest batches, in place, until it has `target_count` batches."""
    missing = target_count - sum(map(len, groups))
    while missing > 0:
        sizes = [(len(batch), g, b) for g, group in enumerate(groups) for b, batch in enumerate(group)]
        size, g, b = max(sizes, default=(0, 0, 0), key=lambda entry: (entry[0], -entry[1], -entry[2]))
        if size < 2:
            raise ConfigError(
                f"a worker has {sum(entry[0] for entry in sizes)} utterances for {target_count} batches. Lower "
                "train.workers or train.gradient_accumulation_steps, or allow larger batches (batch.max_utterances, "
                "batch.max_padded_seconds)."
            )
        batch = groups[g][b]
        groups[g][b : b + 1] = [batch[: size // 2], batch[size // 2 :]]
        missing -= 1


def skip_batches(plan: EpochPlan, count: int) -> EpochPlan:
    """Return the plan without the first `count` batches of each rank, to resume within the epoch."""
    ranks = []
    for groups in plan.read_groups:
        to_skip, remaining = count, []
        for group in groups:
            skipped = min(to_skip, len(group.batches))
            to_skip -= skipped
            if skipped < len(group.batches):
                remaining.append(replace(group, batches=group.batches[skipped:]))
        ranks.append(tuple(remaining))
    return EpochPlan(tuple(ranks))
