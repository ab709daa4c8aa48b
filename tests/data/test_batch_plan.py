"""Test the invariants of batch plans for every rank, epoch and seed, without reading data."""

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
    """Return utterances of log-normal lengths around 3 s, in row groups and shards."""
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
ROWS = np.flatnonzero(np.arange(1500) % 5 > 0)  # a split uses some rows of every row group
FEW = np.arange(37)  # two row groups, which the ranks share
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
    """Return the rows of the batches of each rank as plain lists."""
    return [[batch.tolist() for batch in epoch.batches(rank)] for rank in range(len(epoch.read_groups))]


def flat(epoch: EpochPlan) -> list[int]:
    return list(chain.from_iterable(chain.from_iterable(batches(epoch))))


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_each_row_is_planned_once(rows, world, accumulation):
    for number in range(3):
        assert sorted(flat(plan(rows, world, accumulation, epoch=number))) == rows.tolist()


@pytest.mark.parametrize(("rows", "world", "accumulation"), CASES)
def test_all_ranks_take_the_same_number_of_steps(rows, world, accumulation):
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
def test_batches_fit_the_budget(rows, world, accumulation):
    for epoch in (plan(rows, world, accumulation), plan_evaluation_epoch(MANIFEST, rows, BATCH, world_size=world)):
        for batch in chain.from_iterable(batches(epoch)):
            assert len(batch) <= BATCH.max_utterances
            longest = MANIFEST.num_samples_N[batch].max() / SAMPLE_RATE
            assert longest * len(batch) <= BATCH.max_padded_seconds or len(batch) == 1


def test_an_utterance_beyond_the_budget_is_a_batch_of_its_own():
    tight = BatchConfig(max_padded_seconds=6, max_utterances=12)
    has_long_batch = False
    epoch = plan_training_epoch(MANIFEST, ROWS, tight, seed=0, epoch=0, world_size=2)
    assert sorted(flat(epoch)) == ROWS.tolist()
    for batch in chain.from_iterable(batches(epoch)):
        assert len(batch) == 1 or MANIFEST.num_samples_N[batch].max() * len(batch) <= 6 * SAMPLE_RATE
        has_long_batch |= MANIFEST.num_samples_N[batch].max() > 6 * SAMPLE_RATE
    assert has_long_batch, "no utterance is longer than the budget, so the test is void"


@pytest.mark.parametrize("rows", [ROWS, FEW], ids=len)
def test_a_plan_is_determined_by_seed_epoch_and_world_size(rows):
    again = batches(plan(rows))
    assert batches(plan(rows)) == again
    for changed in ({"seed": 2}, {"epoch": 1}):
        other = batches(plan(rows, **changed))
        assert other != again
        shared = {frozenset(batch) for rank in other for batch in rank} & {frozenset(b) for r in again for b in r}
        assert len(shared) < 0.2 * sum(map(len, again)), "too many batches have the same members"


def bilingual(alpha: float, **changed: Any) -> dict[str, list[int]]:
    """Return the rows by language of an epoch with 1,000 utterances of English and 100 of Finnish."""
    languages_N = np.where(np.arange(1500) < 1000, "en", "fi").astype(object)
    bilingual_manifest = replace(MANIFEST, languages_N=languages_N)
    settings = {"seed": 1, "epoch": 0, "world_size": 2, **changed}
    batch = BATCH.model_copy(update={"language_sampling_alpha": alpha})
    rows = flat(plan_training_epoch(bilingual_manifest, np.arange(1100), batch, **settings))
    return {code: [row for row in rows if languages_N[row] == code] for code in ("en", "fi")}


@pytest.mark.parametrize(("alpha", "times"), [(1.0, 1.0), (0.5, 10**0.5), (0.0, 10.0)])
def test_smaller_languages_are_repeated_and_no_row_is_dropped(alpha, times):
    rows = bilingual(alpha)
    assert sorted(rows["en"]) == list(range(1000))
    assert len(rows["fi"]) == round(100 * times)
    counts = Counter(rows["fi"])
    assert sorted(counts) == list(range(1000, 1100))
    assert max(counts.values()) - min(counts.values()) <= 1, "rows are repeated unevenly"


def test_the_repeated_rows_differ_between_epochs():
    counts = [Counter(bilingual(0.5, epoch=epoch)["fi"]) for epoch in (0, 0, 1)]
    assert counts[0] == counts[1]
    assert counts[0] != counts[2]


def test_seed_and_epoch_are_not_interchangeable():
    assert batches(plan(ROWS, seed=1, epoch=2)) != batches(plan(ROWS, seed=2, epoch=1))


def test_read_groups_have_few_row_groups():
    epoch = plan(ROWS)
    for group in chain.from_iterable(epoch.read_groups):
        rows = np.concatenate(group.batches)
        assert len({*zip(MANIFEST.shard_N[rows], MANIFEST.row_group_N[rows], strict=True)}) <= BATCH.shuffle_row_groups
    owners: dict[tuple[int, int], set[int]] = {}
    for rank, groups in enumerate(epoch.read_groups):
        for row in chain.from_iterable(batch for group in groups for batch in group.batches):
            owners.setdefault((int(MANIFEST.shard_N[row]), int(MANIFEST.row_group_N[row])), set()).add(rank)
    assert all(len(ranks) == 1 for ranks in owners.values()), "several ranks read the same row group"


@pytest.mark.parametrize("done", [0, 1, 5, 17, 10_000])
def test_skipping_batches_leaves_the_rest(done):
    epoch = plan(ROWS, 2, 2)
    rest = skip_batches(epoch, done)
    assert batches(rest) == [rank[done:] for rank in batches(epoch)]
    assert all(group.batches for group in chain.from_iterable(rest.read_groups))
    assert rest.utterances_per_step(1) == epoch.utterances_per_step(1)[done:]


def test_skips_add_up():
    epoch = plan(ROWS)
    assert batches(skip_batches(skip_batches(epoch, 3), 4)) == batches(skip_batches(epoch, 7))


@pytest.mark.parametrize(("utterances", "world", "accumulation"), [(1, 2, 1), (3, 4, 1), (5, 2, 3)])
def test_too_few_utterances_raise(utterances, world, accumulation):
    with pytest.raises(ConfigError, match=r"utterances for \d+ batches\. Lower train\.workers"):
        plan(ROWS[:utterances], world, accumulation)


def test_batches_of_one_utterance():
    single = BatchConfig(max_padded_seconds=60, max_utterances=1)
    epoch = plan_training_epoch(MANIFEST, ROWS, single, seed=0, epoch=0, world_size=2)
    assert sorted(flat(epoch)) == ROWS.tolist()


def test_exactly_enough_utterances():
    assert [len(rank) for rank in batches(plan(ROWS[:6], 2, 3))] == [3, 3]


def test_padding_is_small():
    big = manifest(6000, row_group=64, shard=1024, spread=0.7)
    rows = np.arange(6000)
    settings = BatchConfig(max_padded_seconds=60, max_utterances=16)
    epoch = plan_training_epoch(big, rows, settings, seed=0, epoch=0, world_size=2)
    planned = [batch for rank in range(2) for batch in epoch.batches(rank)]
    padded, unpadded = padded_and_unpadded_seconds(big, planned)
    assert unpadded == pytest.approx(big.num_samples_N.sum() / SAMPLE_RATE)
    cuts = np.cumsum([len(batch) for batch in planned])[:-1]
    random_padded, _ = padded_and_unpadded_seconds(big, np.split(np.random.default_rng(0).permutation(rows), cuts))
    assert padded / unpadded < 1.08
    assert random_padded / unpadded > 1.6


def test_padded_and_unpadded_seconds():
    small = manifest(4)
    small.num_samples_N[:] = np.array([1, 2, 3, 5]) * SAMPLE_RATE
    assert padded_and_unpadded_seconds(small, [np.array([0, 1, 2]), np.array([3])]) == (14.0, 11.0)


@pytest.mark.parametrize("world", [1, 2, 3, 40])
@pytest.mark.parametrize("rows", [ROWS, FEW, ROWS[:0]], ids=len)
def test_evaluation_plans_each_row_once(rows, world):
    epoch = plan_evaluation_epoch(MANIFEST, rows, BATCH, epoch=4, split="test", world_size=world)
    assert len(epoch.read_groups) == world
    assert sorted(flat(epoch)) == rows.tolist()
    assert batches(epoch) == batches(plan_evaluation_epoch(MANIFEST, rows, BATCH, world_size=world))
    assert {(group.epoch, group.split) for group in chain.from_iterable(epoch.read_groups)} <= {(4, "test")}
