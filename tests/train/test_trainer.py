"""Test the trainer on real shards with the real engine and two ranks: interruptions do not change the result."""

import re
from typing import Any

import pytest
import torch
from support.engine_results import EngineResults, TrainerResults
from support.loop_scenario import EPOCHS, KILLS, TRAIN

from lakd_ray.runs.state import RunState

TIMED = ("seconds", "dev_seconds", "audio_seconds", "padding", "memory_mb", "tflops")


@pytest.fixture(scope="module")
def runs(results: EngineResults) -> list[TrainerResults]:
    """Return the results of each rank."""
    return results.two_ranks.runs_by_rank


def metrics(state: RunState) -> list[dict[str, Any]]:
    return [{key: value for key, value in epoch.items() if not key.startswith(TIMED)} for epoch in state.metrics]


def test_an_epoch_has_each_row_once(runs: list[TrainerResults]):
    rows = [rank.uninterrupted.rows for rank in runs]
    assert sorted(rows[0] + rows[1]) == sorted(list(range(TRAIN)) * EPOCHS)


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_ends_with_the_same_weights_and_metrics(runs: list[TrainerResults], kill: tuple[int | None, int]):
    expected, finished = runs[0].uninterrupted, runs[0].killed[kill].finished
    assert metrics(finished.state) == metrics(expected.state)
    assert finished.state.best_checkpoint_name == expected.state.best_checkpoint_name
    for name, value in expected.weights.items():
        assert torch.equal(finished.weights[name], value), name
    assert finished.files == expected.files, "files of the interrupted run remain"


def test_training_from_cached_features_matches_training_from_waves(runs: list[TrainerResults]):
    waves, features = runs[0].from_waves, runs[0].from_features
    assert features.rows == waves.rows
    for actual, expected in zip(metrics(features.state), metrics(waves.state), strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], abs=2e-3)
        assert actual["dev_ce"] == pytest.approx(expected["dev_ce"], abs=2e-3)
    assert waves.state.metrics[0]["loss"] != waves.state.metrics[1]["loss"]


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_resumes_from_its_saved_state(runs: list[TrainerResults], kill: tuple[int | None, int]):
    save_interval, steps = kill
    for rank in runs:
        expected, killed = rank.uninterrupted.rows, rank.killed[kill]
        rows, latest = killed.finished.rows, killed.saved_state.latest
        assert rows == expected[-len(rows) :], "not the rest of the plan"
        per_epoch = len(expected) // EPOCHS
        if save_interval is None:
            assert latest.batches_done == 0
            assert len(rows) == len(expected) - latest.epochs_done * per_epoch
        else:
            repeated = len(killed.rows_before) + len(rows) - len(expected)
            assert repeated <= 2 * save_interval, "more rows are repeated than were trained on since the last state"
            assert (latest.epochs_done, latest.batches_done) > (0, 0)
        assert len(rows) > 0
        assert steps > 0


def test_one_rank_resumes_the_run_of_two_ranks(results: EngineResults, runs: list[TrainerResults]):
    """It resumes from the end of an epoch, where both runs have trained on the same utterances."""
    expected, resumed = runs[0].uninterrupted, results.one_rank.run_resumed_from_two_ranks
    rollback_message, resume_message = resumed.messages
    assert "the mid-epoch state of epoch 2 was saved by 2 workers" in rollback_message
    assert "resuming with 1 workers instead of 2" in resume_message
    assert sorted(resumed.rows) == list(range(TRAIN)), "not the complete second epoch"
    before, after = metrics(expected.state), metrics(resumed.state)
    assert before[0] == after[0] and len(after) == EPOCHS
    assert after[1]["loss"] == pytest.approx(before[1]["loss"], abs=0.3), "only the batches should differ"
    files, expected_files = ([re.sub(r"best-\d+", "best", name) for name in run.files] for run in (resumed, expected))
    assert files == expected_files, "only the number of the best epoch may differ"
