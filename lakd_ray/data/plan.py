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
from lakd_ray.config import Batch
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.errors import ConfigError

# Lengths are compared after a random stretch of up to a tenth, so that not the same neighbours meet in every epoch.
_LENGTH_JITTER = 0.1
# With fewer row groups than this for each rank, every rank reads all of them and takes its share of their rows.
_GROUPS_PER_RANK = 4


@dataclass(frozen=True)
class Window:
    """Row groups that one task reads, and the batches (arrays of manifest row numbers) it makes of them."""

    epoch: int
    split: str
    batches: tuple[Rows, ...]


@dataclass(frozen=True)
class Epoch:
    """The windows of each rank; for training, ranks have equally many batches."""

    windows: tuple[tuple[Window, ...], ...]

    def batches(self, rank: int) -> Iterator[Rows]:
        """One rank's batches in order."""
        for window in self.windows[rank]:
            yield from window.batches

    def step_counts(self, accumulation: int) -> list[int]:
        """Utterances in each optimizer step, all ranks together."""
        sizes = np.array([[len(batch) for batch in self.batches(rank)] for rank in range(len(self.windows))])
        return [int(count) for count in sizes.sum(axis=0).reshape(-1, accumulation).sum(axis=1)]


def training_epoch(
    manifest: Manifest, rows: Rows, batch: Batch, *, seed: int, epoch: int, world: int, accumulation: int = 1
) -> Epoch:
    """Plan one pass over the training rows: each row once, or those of smaller languages more often (`language_alpha`).

    Raises:
        ConfigError: there are too few utterances for so many ranks and accumulated batches.
    """
    random = np.random.default_rng([seed, epoch])
    rows = _balanced(manifest, rows, batch.language_alpha, random)
    shares = _deal(manifest, rows, world, random)
    ranks = [
        [
            _cut_shuffled(manifest, window, batch, random)
            for window in _windows(manifest, share, batch.window_row_groups)
        ]
        for share in shares
    ]
    _even_out(ranks, accumulation)
    return Epoch(
        tuple(tuple(Window(epoch, "train", tuple(window)) for window in windows if window) for windows in ranks)
    )


def evaluation_epoch(
    manifest: Manifest, rows: Rows, batch: Batch, *, epoch: int = 0, split: str = "dev", world: int = 1
) -> Epoch:
    """Plan one pass over evaluation rows, each row once; ranks may differ in their number of batches."""
    shares = _deal(manifest, rows, world, None)
    return Epoch(
        tuple(
            tuple(
                Window(epoch, split, tuple(_cut(manifest, window[np.argsort(manifest.samples_N[window])], batch)))
                for window in _windows(manifest, share, batch.window_row_groups)
            )
            for share in shares
        )
    )


def padded_seconds(manifest: Manifest, batches: Sequence[Rows]) -> tuple[float, float]:
    """Audio seconds with padding, and without."""
    padded = sum(int(manifest.samples_N[batch].max()) * len(batch) for batch in batches)
    return padded / SAMPLE_RATE, sum(int(manifest.samples_N[batch].sum()) for batch in batches) / SAMPLE_RATE


def _balanced(manifest: Manifest, rows: Rows, alpha: float, random: np.random.Generator) -> Rows:
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
        parts += [own] * whole + [random.permutation(own)[:rest]]
    return np.concatenate(parts)


def _deal(manifest: Manifest, rows: Rows, world: int, random: np.random.Generator | None) -> list[Rows]:
    """Each rank's rows: whole row groups while there are enough of them, else a share of every group's rows."""
    _, group_of_row = np.unique(
        np.stack([manifest.shard_N[rows], manifest.row_group_N[rows]]), axis=1, return_inverse=True
    )
    group_of_row = group_of_row.reshape(-1)
    groups = int(group_of_row.max(initial=-1)) + 1
    order = np.arange(groups) if random is None else random.permutation(groups)
    if groups < _GROUPS_PER_RANK * world:
        shuffled = rows if random is None else random.permutation(rows)
        return [shuffled[rank::world] for rank in range(world)]
    seconds = np.bincount(group_of_row, weights=manifest.samples_N[rows], minlength=groups)
    load = np.zeros(world)
    owner = np.empty(groups, dtype=np.int64)
    for group in order:
        owner[group] = int(load.argmin())
        load[owner[group]] += seconds[group]
    position = np.empty(groups, dtype=np.int64)
    position[order] = np.arange(groups)
    by_position = np.argsort(position[group_of_row], kind="stable")
    return [rows[by_position][owner[group_of_row[by_position]] == rank] for rank in range(world)]


def _windows(manifest: Manifest, rows: Rows, row_groups: int) -> list[Rows]:
    """Cut a rank's rows into windows of at most so many row groups, in the order in which the groups come."""
    if not len(rows):
        return []
    keys = manifest.shard_N[rows] * (1 + int(manifest.row_group_N.max())) + manifest.row_group_N[rows]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank_of_group = np.argsort(np.argsort(first))
    window_of_row = rank_of_group[inverse] // row_groups
    return [rows[window_of_row == window] for window in range(int(window_of_row.max()) + 1)]


def _cut_shuffled(manifest: Manifest, rows: Rows, batch: Batch, random: np.random.Generator) -> list[Rows]:
    rows = random.permutation(rows)
    stretch = 1 + _LENGTH_JITTER * random.random(len(rows))
    batches = _cut(manifest, rows[np.argsort(manifest.samples_N[rows] * stretch, kind="stable")], batch)
    return [batches[index] for index in random.permutation(len(batches))]


def _cut(manifest: Manifest, rows: Rows, batch: Batch) -> list[Rows]:
    """Cut rows into batches under the budget; an utterance longer than the budget is a batch of its own."""
    budget = batch.padded_seconds * SAMPLE_RATE
    batches, start, longest = [], 0, 0
    for index, samples in enumerate(manifest.samples_N[rows]):
        longest = max(longest, int(samples))
        count = index - start + 1
        if count > 1 and (longest * count > budget or count > batch.max_utterances):
            batches.append(rows[start:index])
            start, longest = index, int(samples)
    return [*batches, rows[start:]] if len(rows) else []


def _even_out(ranks: list[list[list[Rows]]], accumulation: int) -> None:
    """Give every rank equally many batches, a multiple of `accumulation`, in place.

    Batches beyond the common number move to ranks that have fewer; what is missing then comes from halving the largest.
    """
    counts = [sum(map(len, windows)) for windows in ranks]
    wanted = -(-sum(counts) // (len(ranks) * accumulation)) * accumulation
    spare: list[Rows] = []
    for windows in ranks:
        surplus = range(sum(map(len, windows)) - wanted)
        spare += [next(window for window in reversed(windows) if window).pop() for _ in surplus]
    for windows in ranks:
        missing = wanted - sum(map(len, windows))
        if moved := [spare.pop() for _ in range(min(missing, len(spare)))]:
            windows.append(moved)
        _split_until(windows, wanted)


def _split_until(windows: list[list[Rows]], wanted: int) -> None:
    """Halve a rank's largest batches, in place, until it has as many as the others."""
    missing = wanted - sum(map(len, windows))
    while missing > 0:
        sizes = [(len(batch), w, b) for w, window in enumerate(windows) for b, batch in enumerate(window)]
        size, w, b = max(sizes, default=(0, 0, 0), key=lambda entry: (entry[0], -entry[1], -entry[2]))
        if size < 2:
            raise ConfigError(
                f"a worker has {sum(entry[0] for entry in sizes)} utterances for {wanted} batches. Lower train.workers "
                "or train.accumulation, or allow larger batches (batch.max_utterances, batch.padded_seconds)."
            )
        batch = windows[w][b]
        windows[w][b : b + 1] = [batch[: size // 2], batch[size // 2 :]]
        missing -= 1


def skip(epoch: Epoch, batches: int) -> Epoch:
    """The epoch without each rank's first so many batches: what is left of it for a run that goes on."""
    ranks = []
    for windows in epoch.windows:
        left, kept = batches, []
        for window in windows:
            dropped = min(left, len(window.batches))
            left -= dropped
            if dropped < len(window.batches):
                kept.append(replace(window, batches=window.batches[dropped:]))
        ranks.append(tuple(kept))
    return Epoch(tuple(ranks))
