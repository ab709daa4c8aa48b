"""The loop on real shards and the real engine, two ranks: interrupted anywhere, it ends as if it had not been."""

from typing import Any

import pytest
import torch
from support.loop_scenario import EPOCHS, KILLS, TRAIN

from lakd_ray.runs.state import RunState

TIMED = ("seconds", "dev_seconds", "audio_seconds", "padding", "memory_mb", "tflops")


@pytest.fixture(scope="module")
def runs(found: dict[int, dict[str, Any]]) -> list[dict[Any, Any]]:
    """What each rank saw."""
    return [found[2]["loop"], found[2]["loop of rank 1"]]


def metrics(state: RunState) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith(TIMED)} for line in state.metrics]


def test_an_epoch_has_each_row_once(runs):
    rows = [rank["whole"]["rows"] for rank in runs]
    assert sorted(rows[0] + rows[1]) == sorted(list(range(TRAIN)) * EPOCHS)


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_ends_with_the_same_weights_and_metrics(runs, kill):
    whole, killed = runs[0]["whole"], runs[0][kill]
    assert metrics(killed["state"]) == metrics(whole["state"])
    assert killed["state"].best_checkpoint_name == whole["state"].best_checkpoint_name
    for name, value in whole["weights"].items():
        assert torch.equal(killed["weights"][name], value), name
    assert killed["left"] == whole["left"], "something was left behind"


def test_training_from_cached_features_is_training_from_waves(runs):
    waves, features = runs[0]["from waves"], runs[0]["from features"]
    assert features["rows"] == waves["rows"]
    for one, other in zip(metrics(features["state"]), metrics(waves["state"]), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-3)
        assert one["dev_ce"] == pytest.approx(other["dev_ce"], abs=2e-3)
    assert waves["state"].metrics[0]["loss"] != waves["state"].metrics[1]["loss"]


@pytest.mark.parametrize("kill", KILLS)
def test_it_goes_on_where_it_was_saved(runs, kill):
    every, steps = kill
    for rank in runs:
        whole, killed = rank["whole"]["rows"], rank[kill]
        assert killed["rows"] == whole[-len(killed["rows"]) :], "not the rest of the plan"
        reached = killed["reached"]
        per_epoch = len(whole) // EPOCHS
        if every is None:
            assert reached.latest.cursor == 0
            assert len(killed["rows"]) == len(whole) - reached.latest.epoch * per_epoch
        else:
            assert len(killed["before"]) + len(killed["rows"]) - len(whole) <= 2 * every, "more lost than was unsaved"
            assert (reached.latest.epoch, reached.latest.cursor) > (0, 0)
        assert len(killed["rows"]) > 0
        assert steps > 0


def test_one_worker_goes_on_with_what_two_have_begun(found, runs):
    """From the end of an epoch, where both have seen the same utterances."""
    whole, alone = runs[0]["whole"], found[1]["fewer"]
    within, fewer = alone["told"]
    assert "saved by 2 workers within epoch 2" in within and "going on with 1 workers instead of 2" in fewer
    assert sorted(alone["rows"]) == list(range(TRAIN)), "the second epoch, whole"
    before, after = (metrics(each["state"]) for each in (whole, alone))
    assert before[0] == after[0] and len(after) == EPOCHS
    assert after[1]["loss"] == pytest.approx(before[1]["loss"], abs=0.3), "other batches of the same utterances"
    assert alone["left"] == whole["left"]
