"""The state of a run in its folder, and the fingerprint of its inputs."""

from pathlib import Path
from typing import Any

import pytest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.errors import CheckpointError, StageError
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.state import (
    METRICS_FILE,
    ResumePoint,
    RunState,
    find_best_checkpoint,
    find_best_student_checkpoint,
    fingerprint_inputs,
    select_served_student,
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


def epoch(UR: float, ce: float = 1.0) -> dict[str, Any]:
    return {"dev_UR": UR, "dev_ce": ce}


def test_a_new_run_has_an_empty_state(tmp_path):
    state = RunState.read(str(tmp_path / "nothing"))
    assert state == RunState() and (state.best_checkpoint_name, state.best_dev_score, state.latest) == (
        None,
        (-1.0, 0.0),
        ResumePoint(),
    )


def test_state_round_trip(tmp_path):
    before = ResumePoint(1, 6, "resume-0001-00006", 2)
    state = RunState(ResumePoint(2, 0, "resume-0002", 2), (before,), (epoch(0.5, 1.25), epoch(0.4)))
    state.write(str(tmp_path))
    read = RunState.read(str(tmp_path))
    assert read == state
    assert (read.best_checkpoint_name, read.best_dev_score) == ("best-0001", (0.5, -1.25))
    assert read.best_dev_score < (0.5, -1.2)  # comparable with a new epoch's
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == 2


def test_epochs_are_ranked_by_recall_then_loss_then_order():
    state = RunState(metrics=(epoch(0.5, 1.0), epoch(0.6, 2.0), epoch(0.6, 1.5), epoch(0.6, 1.5)))
    assert state.best_checkpoint_names(3) == ["best-0003", "best-0004", "best-0002"]
    assert state.best_checkpoint_names(3, epochs=2) == ["best-0002", "best-0001"]
    assert (state.best_checkpoint_name, state.epochs_since_best, RunState().epochs_since_best) == ("best-0003", 1, 0)


def test_stored_resume_points():
    """The given number, and always one from which a different number of workers can resume."""
    state = RunState()
    names = []
    for number, (done, batches) in enumerate([(0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (1, 12), (2, 0)]):
        metrics = epoch(0.5 + 0.1 * done) if batches == 0 else None
        state = state.advance(ResumePoint(done, batches, f"p{number}"), metrics, keep_resume_states=2)
        names.append([point.resume_folder for point in (state.latest, *state.previous)])
    expected = ["p0", "p1 p0", "p2 p1", "p3 p2", "p4 p3 p2", "p5 p4 p2", "p6 p5"]
    assert [" ".join(map(str, folders)) for folders in names] == expected


def test_rollback_restores_the_previous_state():
    first = RunState().advance(ResumePoint(1, 0, "one"), epoch(0.6), keep_resume_states=2)
    second = first.advance(ResumePoint(2, 0, "two"), epoch(0.9), keep_resume_states=2)
    assert second.rollback() == first and first.rollback() == RunState()
    assert second.referenced_folders(keep_checkpoints=1) == {"one", "two", "best-0001", "best-0002"}, (
        "the first may be needed again"
    )
    third = second.advance(ResumePoint(3, 0, "three"), epoch(0.1), keep_resume_states=2)
    assert second.referenced_folders(1) - third.referenced_folders(1) == {"one", "best-0001"}
    assert third.referenced_folders(2) == {"two", "three", "best-0001", "best-0002"}
    within = first.advance(ResumePoint(1, 3, "within"), None, keep_resume_states=1)
    assert within.referenced_folders(1) == {"one", "within", "best-0001"}, "the end of an epoch stays"


def test_best_checkpoint_of_a_finished_run(tmp_path):
    config = experiment(tmp_path)
    run = build_run_graph(config).teachers[0]
    folder = run.folder(config)
    with pytest.raises(StageError, match=r"teacher-en-f0-s42 is not trained.*stage `teachers`"):
        find_best_checkpoint(run, config)
    record.mark_started(folder, {})
    RunState(ResumePoint(1, 0, "resume-0001"), metrics=(epoch(0.5),)).write(folder)
    with pytest.raises(StageError, match="no finished run"):
        find_best_checkpoint(run, config)
    record.mark_finished(folder, {}, [])
    assert find_best_checkpoint(run, config) == storage.join(folder, "best-0001")
    RunState(ResumePoint(1)).write(folder)
    with pytest.raises(CheckpointError, match="names no best checkpoint"):
        find_best_checkpoint(run, config)


def write_dev_scores(config: Experiment, scores: dict[str, float]) -> None:
    for run in build_run_graph(config).students:
        if run.id in scores:
            RunState(metrics=(epoch(scores[run.id]),)).write(run.folder(config))


def test_the_served_student_covers_all_languages_and_is_the_best_of_these_on_dev(tmp_path):
    config = experiment(tmp_path, distill={"paradigms": ["kd", "mtkd"], "setups": ["monolingual", "multilingual"]})
    scores = {"kd-en-f0-s42": 0.9, "kd-multilingual-f0-s42": 0.6, "mtkd-multilingual-f0-s42": 0.7}
    write_dev_scores(config, scores)
    assert select_served_student(build_run_graph(config)).id == "mtkd-multilingual-f0-s42"


def test_without_a_student_of_all_languages_the_paradigm_with_the_best_mean_is_served(tmp_path, caplog):
    config = experiment(tmp_path, distill={"paradigms": ["kd", "mtkd"], "setups": ["monolingual"]})
    write_dev_scores(config, {"kd-en-f0-s42": 0.9, "kd-fi-f0-s42": 0.4, "mtkd-en-f0-s42": 0.6})
    assert select_served_student(build_run_graph(config)).id == "kd-en-f0-s42", "mtkd is not complete"
    write_dev_scores(config, {"mtkd-fi-f0-s42": 0.8})
    graph = build_run_graph(config)
    assert select_served_student(graph).id == "mtkd-en-f0-s42"
    with pytest.raises(StageError, match="mtkd-en-f0-s42 is not trained"):
        find_best_student_checkpoint(graph)
    assert "mtkd-en-f0-s42 is trained on en, not on fi" in caplog.text


def test_with_one_language_students_of_both_set_ups_compete(tmp_path):
    distill = {"paradigms": ["kd"], "setups": ["monolingual", "multilingual"]}
    config = experiment(tmp_path, languages=["en"], distill=distill)
    write_dev_scores(config, {"kd-en-f0-s42": 0.7, "kd-multilingual-f0-s42": 0.6})
    assert select_served_student(build_run_graph(config)).id == "kd-en-f0-s42"


def fingerprint(config: Experiment, run: Run | None = None, **inputs: str) -> str:
    run = run or next(run for run in build_run_graph(config).students if run.paradigm == "mtkd")
    return record.digest(fingerprint_inputs(run, config, {"prepare": "p", **inputs}))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"fold": 1},
        {"student": {"model": {"pretrained": "different"}}},
        {"distill": {"mtkd": {"lam": 0.5}}},
        {"batch": {"max_utterances": 3}},
        {"train": {"zero_stage": 2}},
        {"train": {"gradient_accumulation_steps": 2}},
        {"train": {"compile": True}},
        {"corpora": [{"name": "c", "root": "x", "split": {"folds": 5}}]},
    ],
)
def test_settings_that_affect_weights_change_the_fingerprint(change):
    assert fingerprint(experiment(**change)) != fingerprint(experiment())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {
            "train": {
                "max_failures": 0,
                "collective_timeout_s": 5.0,
                "parallel_runs": 2,
                "keep_checkpoints": 3,
                "gradient_checkpointing": True,
            }
        },
        {"train": {"workers": 2}},  # a run may resume with a different number
        {"serve": {"port": 0}},
        {"tune": {"trials": 1}},
        {"stages": ["distill"]},
    ],
)
def test_settings_that_do_not_affect_weights_keep_the_fingerprint(change):
    assert fingerprint(experiment(**change)) == fingerprint(experiment())


def test_inputs_change_the_fingerprint_and_names_do_not():
    config = experiment()
    run = build_run_graph(config).students[0]
    assert fingerprint(config, teacher="one") != fingerprint(config, teacher="two")
    assert fingerprint(config, run) == fingerprint(config, run.model_copy(update={"id": "renamed", "stage": "tune"}))
