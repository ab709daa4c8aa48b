"""What a run leaves behind, and what makes a run another one."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lakd_ray import records, storage
from lakd_ray.config import Experiment
from lakd_ray.errors import CheckpointError, StageError
from lakd_ray.runs import Run, student_runs, teacher_runs
from lakd_ray.train.state import (
    METRICS,
    State,
    best_checkpoint,
    load_generators,
    made_by,
    save_generators,
    seed_generators,
)


def experiment(storage_root: Path | str = "out", **changes: Any) -> Experiment:
    content = {
        "name": "e",
        "storage": str(storage_root),
        "languages": ["en", "fi"],
        "corpora": [{"name": "c", "root": "x"}],
        "teacher": {"model": {"pretrained": "teacher"}},
        "student": {"model": {"pretrained": "student"}},
    }
    return Experiment.model_validate(content | changes)


def test_a_new_run_has_a_fresh_state(tmp_path):
    assert State.read(str(tmp_path / "nothing")) == State(0, None, None, (-1.0, 0.0), [])


def test_state_round_trip(tmp_path):
    state = State(2, "resume-0002", "best-0001", (0.5, -1.25), [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}])
    state.write(str(tmp_path))
    found = State.read(str(tmp_path))
    assert found == state
    assert found.best_score < (0.5, -1.2)  # comparable with a new epoch's
    assert (tmp_path / METRICS).read_text().count("\n") == 2


def test_best_checkpoint_of_a_finished_run(tmp_path):
    config = experiment(tmp_path)
    run = teacher_runs(config)[0]
    folder = run.folder(config)
    with pytest.raises(StageError, match=r"teacher-en-f0-s42 is not trained.*stage `teachers`"):
        best_checkpoint(run, config)
    records.start(folder, {})
    State(1, "resume-0001", "best-0001").write(folder)
    with pytest.raises(StageError, match="no finished run"):
        best_checkpoint(run, config)
    records.finish(folder, {}, [])
    assert best_checkpoint(run, config) == storage.join(folder, "best-0001")
    State(1).write(folder)
    with pytest.raises(CheckpointError, match="names no best checkpoint"):
        best_checkpoint(run, config)


def made(config: Experiment, run: Run | None = None, **inputs: str) -> str:
    run = run or next(run for run in student_runs(config) if run.paradigm == "mtkd")
    return records.digest(made_by(run, config, {"prepare": "p", **inputs}))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"fold": 1},
        {"student": {"model": {"pretrained": "another"}}},
        {"distill": {"mtkd": {"lam": 0.5}}},
        {"batch": {"max_utterances": 3}},
        {"train": {"workers": 2}},
        {"train": {"zero_stage": 2}},
        {"train": {"accumulation": 2}},
        {"corpora": [{"name": "c", "root": "x", "split": {"folds": 5}}]},
    ],
)
def test_what_shapes_weights_makes_another_run(change):
    assert made(experiment(**change)) != made(experiment())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"train": {"max_failures": 0, "timeout_s": 5.0, "side_by_side": 2}},
        {"serve": {"port": 0}},
        {"tune": {"trials": 1}},
        {"stages": ["distill"]},
    ],
)
def test_what_does_not_shape_weights_leaves_the_run_the_same(change):
    assert made(experiment(**change)) == made(experiment())


def test_inputs_make_another_run_and_names_do_not():
    config = experiment()
    run = student_runs(config)[0]
    assert made(config, teacher="one") != made(config, teacher="two")
    assert made(config, run) == made(config, run.model_copy(update={"id": "elsewhere", "stage": "tune"}))


def draws() -> tuple[float, ...]:
    return (random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.randn(1000).sum()))


def test_generators_go_on_where_they_were(tmp_path):
    seed_generators(3, 0)
    draws()
    save_generators(tmp_path / "generators.pt")
    expected = [draws(), draws()]
    seed_generators(99, 1)
    load_generators(tmp_path / "generators.pt")
    assert [draws(), draws()] == expected


def test_seeding_is_repeatable_and_differs_between_ranks_and_seeds():
    found = {}
    for key in ((3, 0), (3, 1), (4, 0), (2**32, 7)):
        for _ in range(2):
            seed_generators(*key)
            assert found.setdefault(key, first := draws()) == first
    assert len({value for row in found.values() for value in row}) == 4 * len(found)
