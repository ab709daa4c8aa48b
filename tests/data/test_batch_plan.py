"""Plans of batches: what must hold for every rank, epoch and seed. Nothing is read here."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import BatchConfig
from lakd_ray.data.batch_plan import (
    EpochPlan,
    padded_and_unpadded_seconds,
    plan_evaluation_epoch,
    plan_training_epoch,
    skip_batches,
)
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import ConfigError

BATCH = BatchConfig(max_padded_seconds=40, max_utterances=12, shuffle_row_groups=4)


def manifest(utterances: int, *, row_group: int = 32, shard: int = 256, spread: float = 0.6) -> Manifest:
    """Utterances of log-normal lengths around 3 s, in row groups and shards."""
    random = np.random.default_rng(7)
    number = np.arange(utterances)
    seconds = np.clip(np.exp(np.log(3) + spread * random.standard_normal(utterances)), 0.2, 20)
    return Manifest(
        table=pa.table({"utterance": [str(row) for row in number]}),
        labels_N=number % 4,
        splits_N=np.full(utterances, "train"),
        languages_N=np.full(utterances, "en", dtype=object),
        num_samples_N=(seconds * SAMPLE_RATE).astype(np.int64),
        shards=tuple(f"{index}.parquet" for index in range(-(-utterances // shard))),
        shard_N=number // shard,
        row_group_N=number % shard // row_group,
        row_N=number % shard % row_group,
    )


MANIFEST = manifest(1500)
ROWS = np.flatnonzero(np.arange(1500) % 5 > 0)  # a split takes some rows of every row group
FEW = np.arange(37)  # two row groups: ranks share them
CASES = [
    pytest.param(rows, world, accumulation, id=f"{len(rows)} rows, {world} ranks, accumulation {accumulation}")
    for rows in (ROWS, FEW)
    for world, accumulation in ((1, 1), (2, 1), (3, 2), (4, 4))
]


def plan(rows: RowIndices, world: int = 2, accumulation: int = 1, **changed: Any) -> EpochPlan:
    settings = {"seed": 1, "epoch": 0, **changed}
    return plan_training_epoch(
        MANIFEST, rows, BATCH, world_size=world, gradient_accumulation_steps=accumulation, **settings
    )


def batches(epoch: EpochPlan) -> list[list[list[int]]]:
    """Ranks of batches of rows, as plain lists."""
    return [[batch.tolist() for batch in epoch.batches(rank)] for rank in range(len(epoch.read_groups))]


def flat(epoch: EpochPlan) -> list[int]:
    return list(chain.from_iterable(chain.from_iterable(batches(epoch))))


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_each_row_once(rows, world, accumulation):
    for number in range(3):
        assert sorted(flat(plan(rows, world, accumulation, epoch=number))) == rows.tolist()


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_ranks_take_equally_many_steps(rows, world, accumulation):
    epoch = plan(rows, world, accumulation)
    counts = {len(rank) for rank in batches(epoch)}
    assert len(counts) == 1
    assert counts.pop() % accumulation == 0
    assert all(batch for rank in batches(epoch) for batch in rank)


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_step_counts_are_global(rows, world, accumulation):
    epoch = plan(rows, world, accumulation)
    counts = epoch.utterances_per_step(accumulation)
    assert sum(counts) == len(rows)
    by_rank = batches(epoch)
    first = sum(len(batch) for rank in by_rank for batch in rank[:accumulation])
    assert counts[0] == first
    assert len(counts) * accumulation == len(by_rank[0])


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_budget(rows, world, accumulation):
    for made in (plan(rows, world, accumulation), plan_evaluation_epoch(MANIFEST, rows, BATCH, world_size=world)):
        for batch in chain.from_iterable(batches(made)):
            assert len(batch) <= BATCH.max_utterances
            longest = MANIFEST.num_samples_N[batch].max() / SAMPLE_RATE
            assert longest * len(batch) <= BATCH.max_padded_seconds or len(batch) == 1


def test_utterance_beyond_the_budget_is_a_batch_of_its_own():
    tight = BatchConfig(max_padded_seconds=6, max_utterances=12)
    alone = False
    epoch = plan_training_epoch(MANIFEST, ROWS, tight, seed=0, epoch=0, world_size=2)
    assert sorted(flat(epoch)) == ROWS.tolist()
    for batch in chain.from_iterable(batches(epoch)):
        assert len(batch) == 1 or MANIFEST.num_samples_N[batch].max() * len(batch) <= 6 * SAMPLE_RATE
        alone |= MANIFEST.num_samples_N[batch].max() > 6 * SAMPLE_RATE
    assert alone, "some are longer than the budget"


@pytest.mark.parametrize("rows", [ROWS, FEW], ids=len)
def test_determined_by_seed_epoch_and_world(rows):
    again = batches(plan(rows))
    assert batches(plan(rows)) == again
    for changed in ({"seed": 2}, {"epoch": 1}):
        other = batches(plan(rows, **changed))
        assert other != again
        shared = {frozenset(batch) for rank in other for batch in rank} & {frozenset(b) for r in again for b in r}
        assert len(shared) < 0.2 * sum(map(len, again)), "the same neighbours meet again"


def bilingual(alpha: float, **changed: Any) -> dict[str, list[int]]:
    """Rows of an epoch over 1,000 utterances of one language and 100 of another."""
    languages_N = np.where(np.arange(1500) < 1000, "en", "fi").astype(object)
    balanced = replace(MANIFEST, languages_N=languages_N)
    settings = {"seed": 1, "epoch": 0, "world_size": 2, **changed}
    batch = BATCH.model_copy(update={"language_sampling_alpha": alpha})
    found = flat(plan_training_epoch(balanced, np.arange(1100), batch, **settings))
    return {code: [row for row in found if languages_N[row] == code] for code in ("en", "fi")}


@pytest.mark.parametrize(("alpha", "times"), [(1.0, 1.0), (0.5, 10**0.5), (0.0, 10.0)])
def test_smaller_languages_are_repeated_and_nothing_is_left_out(alpha, times):
    found = bilingual(alpha)
    assert sorted(found["en"]) == list(range(1000))
    assert len(found["fi"]) == round(100 * times)
    counts = Counter(found["fi"])
    assert sorted(counts) == list(range(1000, 1100))
    assert max(counts.values()) - min(counts.values()) <= 1, "some are repeated more than others"


def test_which_are_repeated_is_drawn_in_each_epoch():
    often = [Counter(bilingual(0.5, epoch=epoch)["fi"]) for epoch in (0, 0, 1)]
    assert often[0] == often[1]
    assert often[0] != often[2]


def test_seed_and_epoch_do_not_trade_places():
    assert batches(plan(ROWS, seed=1, epoch=2)) != batches(plan(ROWS, seed=2, epoch=1))


def test_windows_hold_few_row_groups():
    epoch = plan(ROWS)
    for window in chain.from_iterable(epoch.read_groups):
        rows = np.concatenate(window.batches)
        assert len({*zip(MANIFEST.shard_N[rows], MANIFEST.row_group_N[rows], strict=True)}) <= BATCH.shuffle_row_groups
    owners: dict[tuple[int, int], set[int]] = {}
    for rank, windows in enumerate(epoch.read_groups):
        for row in chain.from_iterable(batch for window in windows for batch in window.batches):
            owners.setdefault((int(MANIFEST.shard_N[row]), int(MANIFEST.row_group_N[row])), set()).add(rank)
    assert all(len(ranks) == 1 for ranks in owners.values()), "a row group is read by one rank only"


@pytest.mark.parametrize("done", [0, 1, 5, 17, 10_000])
def test_skip_leaves_the_rest(done):
    epoch = plan(ROWS, 2, 2)
    left = skip_batches(epoch, done)
    assert batches(left) == [rank[done:] for rank in batches(epoch)]
    assert all(window.batches for window in chain.from_iterable(left.read_groups))
    assert left.utterances_per_step(1) == epoch.utterances_per_step(1)[done:]


def test_skip_twice():
    epoch = plan(ROWS)
    assert batches(skip_batches(skip_batches(epoch, 3), 4)) == batches(skip_batches(epoch, 7))


@pytest.mark.parametrize(("utterances", "world", "accumulation"), [(1, 2, 1), (3, 4, 1), (5, 2, 3)])
def test_too_few_utterances(utterances, world, accumulation):
    with pytest.raises(ConfigError, match=r"utterances for \d+ batches\. Lower train\.workers"):
        plan(ROWS[:utterances], world, accumulation)


def test_one_utterance_a_batch():
    one = BatchConfig(max_padded_seconds=60, max_utterances=1)
    epoch = plan_training_epoch(MANIFEST, ROWS, one, seed=0, epoch=0, world_size=2)
    assert sorted(flat(epoch)) == ROWS.tolist()


def test_just_enough_utterances():
    assert [len(rank) for rank in batches(plan(ROWS[:6], 2, 3))] == [3, 3]


def test_little_padding():
    big = manifest(6000, row_group=64, shard=1024, spread=0.7)
    rows = np.arange(6000)
    settings = BatchConfig(max_padded_seconds=60, max_utterances=16)
    epoch = plan_training_epoch(big, rows, settings, seed=0, epoch=0, world_size=2)
    made = [batch for rank in range(2) for batch in epoch.batches(rank)]
    padded, plain = padded_and_unpadded_seconds(big, made)
    assert plain == pytest.approx(big.num_samples_N.sum() / SAMPLE_RATE)
    cuts = np.cumsum([len(batch) for batch in made])[:-1]
    at_random, _ = padded_and_unpadded_seconds(big, np.split(np.random.default_rng(0).permutation(rows), cuts))
    assert padded / plain < 1.08
    assert at_random / plain > 1.6


def test_padded_seconds():
    small = manifest(4)
    small.num_samples_N[:] = np.array([1, 2, 3, 5]) * SAMPLE_RATE
    assert padded_and_unpadded_seconds(small, [np.array([0, 1, 2]), np.array([3])]) == (14.0, 11.0)


@pytest.mark.parametrize("world", [1, 2, 3, 40])
@pytest.mark.parametrize("rows", [ROWS, FEW, ROWS[:0]], ids=len)
def test_evaluation_covers_all(rows, world):
    epoch = plan_evaluation_epoch(MANIFEST, rows, BATCH, epoch=4, split="test", world_size=world)
    assert len(epoch.read_groups) == world
    assert sorted(flat(epoch)) == rows.tolist()
    assert batches(epoch) == batches(plan_evaluation_epoch(MANIFEST, rows, BATCH, world_size=world))
    assert {(window.epoch, window.split) for window in chain.from_iterable(epoch.read_groups)} <= {(4, "test")}
