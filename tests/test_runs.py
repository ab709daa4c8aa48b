"""Which runs an experiment consists of."""

from typing import Any

import pytest

from lakd_ray.config import Experiment, dump
from lakd_ray.runs import Run, student_runs, teacher_runs

LANGUAGES = ("en", "fi", "fr")


def experiment(*, same_recipe: bool = True, base: str | None = None, **distill: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "storage": "/outputs",
            "base": base,
            "languages": LANGUAGES,
            "fold": 2,
            "seed": 5,
            "corpora": [{"name": "c", "root": "x"}],
            "teacher": {"model": {"pretrained": "teacher"}},
            "student": {"model": {"pretrained": "teacher" if same_recipe else "student"}},
            "distill": distill,
        }
    )


def test_teachers():
    runs = teacher_runs(experiment())
    assert [(run.id, run.languages, run.setup) for run in runs] == [
        ("teacher-en", ("en",), "monolingual"),
        ("teacher-fi", ("fi",), "monolingual"),
        ("teacher-fr", ("fr",), "monolingual"),
        ("teacher-all", LANGUAGES, "multilingual"),
    ]
    for run in runs:
        assert (run.stage, run.paradigm, run.loss, run.teachers) == ("teachers", "ft", None, ())
        assert (run.fold, run.seed) == (2, 5)
    assert [run.id for run in teacher_runs(experiment(paradigms=["ft", "mtkd"]))] == [f"teacher-{c}" for c in LANGUAGES]


def test_students_of_another_recipe():
    config = experiment(same_recipe=False, setups=["monolingual", "multilingual"])
    runs = {run.id: run for run in student_runs(config)}
    assert list(runs) == [
        *(f"{paradigm}-{code}" for paradigm in ("ft", "kd", "mtkd") for code in LANGUAGES),
        *(f"{paradigm}-multilingual" for paradigm in ("ft", "kd", "mtkd")),
    ]
    assert {run.stage for run in runs.values()} == {"distill"}
    assert all(run.recipe == config.student for run in runs.values())
    assert runs["kd-fi"].languages == ("fi",)
    assert runs["kd-fi"].teachers == ("teacher-all",)
    assert runs["kd-fi"].loss == config.distill.kd
    assert runs["mtkd-multilingual"].languages == LANGUAGES
    assert runs["mtkd-multilingual"].teachers == ("teacher-en", "teacher-fi", "teacher-fr")
    assert runs["mtkd-multilingual"].loss == config.distill.mtkd
    assert runs["ft-en"].loss is None


def test_students_trained_as_teachers_are_not_trained_again():
    config = experiment(setups=["monolingual", "multilingual"])
    students = student_runs(config)
    assert [run for run in students if run.paradigm == "ft"] == teacher_runs(config)
    assert [run.id for run in students if run.stage == "distill"][:1] == ["kd-en"]
    alone = experiment(paradigms=["ft", "mtkd"])  # no multilingual teacher is trained without kd
    assert [run.id for run in student_runs(alone)] == ["ft-multilingual", "mtkd-multilingual"]


@pytest.mark.parametrize("same_recipe", [True, False])
def test_teachers_of_students_exist(same_recipe):
    config = experiment(same_recipe=same_recipe, setups=["monolingual", "multilingual"])
    known = {run.id for run in teacher_runs(config)}
    runs = teacher_runs(config) + [run for run in student_runs(config) if run.stage == "distill"]
    assert len({run.id for run in runs}) == len(runs)
    assert {teacher for run in runs for teacher in run.teachers} == known
    for run in runs:
        assert Run.model_validate(dump(run)) == run


def test_folders():
    config = experiment(base="shared")
    teacher, student = teacher_runs(config)[0], student_runs(config)[-1]
    assert teacher.folder(config) == "/outputs/shared/teachers/teacher-en"
    assert student.folder(config) == "/outputs/t/distill/mtkd-multilingual"
