"""Which runs an experiment consists of."""

from typing import Any

import pytest

from lakd_ray.config import Experiment, to_dict
from lakd_ray.runs.graph import Run, all_runs, cross_fitted_runs, student_runs, teacher_runs

LANGUAGES = ("en", "fi", "fr")


def experiment(*, same_recipe: bool = True, base: str | None = None, **distill: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "t",
            "storage": "/outputs",
            "base_experiment": base,
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
        ("teacher-en-f2-s5", ("en",), "monolingual"),
        ("teacher-fi-f2-s5", ("fi",), "monolingual"),
        ("teacher-fr-f2-s5", ("fr",), "monolingual"),
        ("teacher-all-f2-s5", LANGUAGES, "multilingual"),
    ]
    for run in runs:
        assert (run.stage, run.paradigm, run.loss, run.teachers) == ("teachers", "ft", None, ())
        assert (run.fold, run.seed) == (2, 5)
    assert [run.id for run in teacher_runs(experiment(paradigms=["ft", "mtkd"]))] == [
        f"teacher-{c}-f2-s5" for c in LANGUAGES
    ]


def test_students_of_another_recipe():
    config = experiment(same_recipe=False, setups=["monolingual", "multilingual"])
    runs = {run.id: run for run in student_runs(config)}
    assert list(runs) == [
        *(f"{paradigm}-{code}-f2-s5" for paradigm in ("ft", "kd", "mtkd") for code in LANGUAGES),
        *(f"{paradigm}-multilingual-f2-s5" for paradigm in ("ft", "kd", "mtkd")),
    ]
    assert {run.stage for run in runs.values()} == {"distill"}
    assert all(run.recipe == config.student for run in runs.values())
    assert runs["kd-fi-f2-s5"].languages == ("fi",)
    assert runs["kd-fi-f2-s5"].teachers == ("teacher-all-f2-s5",)
    assert runs["kd-fi-f2-s5"].loss == config.distill.kd
    assert runs["mtkd-multilingual-f2-s5"].languages == LANGUAGES
    assert runs["mtkd-multilingual-f2-s5"].teachers == ("teacher-en-f2-s5", "teacher-fi-f2-s5", "teacher-fr-f2-s5")
    assert runs["mtkd-multilingual-f2-s5"].loss == config.distill.mtkd
    assert runs["ft-en-f2-s5"].loss is None


def test_students_trained_as_teachers_are_not_trained_again():
    config = experiment(setups=["monolingual", "multilingual"])
    students = student_runs(config)
    assert [run for run in students if run.paradigm == "ft"] == teacher_runs(config)
    assert [run.id for run in students if run.stage == "distill"][:1] == ["kd-en-f2-s5"]
    alone = experiment(paradigms=["ft", "mtkd"])  # no multilingual teacher is trained without kd
    assert [run.id for run in student_runs(alone)] == ["ft-multilingual-f2-s5", "mtkd-multilingual-f2-s5"]


@pytest.mark.parametrize("same_recipe", [True, False])
def test_teachers_of_students_exist(same_recipe):
    config = experiment(same_recipe=same_recipe, setups=["monolingual", "multilingual"])
    known = {run.id for run in teacher_runs(config)}
    runs = teacher_runs(config) + [run for run in student_runs(config) if run.stage == "distill"]
    assert len({run.id for run in runs}) == len(runs)
    assert {teacher for run in runs for teacher in run.teachers} == known
    for run in runs:
        assert Run.model_validate(to_dict(run)) == run


def test_folders():
    config = experiment(base="shared")
    teacher, student = teacher_runs(config)[0], student_runs(config)[-1]
    assert teacher.folder(config) == "/outputs/shared/teachers/teacher-en-f2-s5"
    assert student.folder(config) == "/outputs/t/distill/mtkd-multilingual-f2-s5"


def paper(fold: int, **distill: Any) -> Experiment:
    """Corpora with five, nine and three folds."""
    corpora = [
        {"name": name, "importer": name, "root": "x", "languages": [code], "split": {"scheme": "paper"}}
        for name, code in (("iemocap", "en"), ("fesc", "fi"), ("cafe", "fr"))
    ]
    return Experiment.model_validate(to_dict(experiment(**distill)) | {"fold": fold, "corpora": corpora})


def test_what_a_fold_repeats_is_one_run():
    assert [run.id for run in teacher_runs(paper(7))] == [
        "teacher-en-f2-s5", "teacher-fi-f7-s5", "teacher-fr-f1-s5", "teacher-all-f7-s5",
    ]  # fmt: skip
    students = {run.id: run for run in student_runs(paper(7, setups=["monolingual", "multilingual"]))}
    assert "mtkd-en-f7-s5" in students  # its teachers of other languages are this fold's
    assert students["mtkd-en-f7-s5"].teachers == ("teacher-en-f2-s5", "teacher-fi-f7-s5", "teacher-fr-f1-s5")
    of_all = {run.id for fold in range(9) for run in teacher_runs(paper(fold))}
    assert len(of_all) == 5 + 9 + 3 + 9


def test_folds_that_only_the_data_tell_are_not_taken_for_each_other():
    content = to_dict(experiment())
    content["corpora"][0]["split"]["scheme"] = "leave-one-speaker-out"
    runs = [teacher_runs(Experiment.model_validate(content | {"fold": fold}))[0].id for fold in (0, 4, 8)]
    assert len(set(runs)) == 3


def test_cross_fitted_teachers():
    config = experiment(paradigms=["mtkd"], mtkd={"weighting": "confidence"})
    parts = [f"teacher-en-f2-s5-crossfit-{number}of3" for number in (1, 2, 3)]
    runs = {run.id: run for run in cross_fitted_runs(config)}
    assert list(runs)[:3] == parts and len(runs) == 9
    assert runs[parts[1]].held_out_fold is not None and runs[parts[1]].held_out_fold.index == 1
    (student,) = student_runs(config)
    assert student.teachers == tuple(run.id for run in teacher_runs(config))
    assert set(student.dependencies) == {*student.teachers, *runs}
    order = [run.id for run in all_runs(config)]
    assert all(order.index(need) < order.index(student.id) for need in student.dependencies)
    assert cross_fitted_runs(experiment(mtkd={"weighting": "confidence", "cross_fit": 0})) == []
    assert cross_fitted_runs(experiment()) == []


def test_a_variant_is_in_the_names_of_students_alone():
    config = experiment(paradigms=["mtkd"]).model_copy(update={"variant": "half"})
    assert [run.id for run in student_runs(config)] == ["mtkd-multilingual-half-f2-s5"]
    assert teacher_runs(config) == teacher_runs(experiment(paradigms=["mtkd"]))
