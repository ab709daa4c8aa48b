"""The runs of an experiment, their ids, dependencies and folders."""

from typing import Any

import pytest

from lakd_ray.config import Experiment, to_dict
from lakd_ray.runs.graph import Run, build_run_graph

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
    runs = build_run_graph(experiment()).teachers
    assert [(run.id, run.languages, run.setup) for run in runs] == [
        ("teacher-en-f2-s5", ("en",), "monolingual"),
        ("teacher-fi-f2-s5", ("fi",), "monolingual"),
        ("teacher-fr-f2-s5", ("fr",), "monolingual"),
        ("teacher-all-f2-s5", LANGUAGES, "multilingual"),
    ]
    for run in runs:
        assert (run.stage, run.paradigm, run.loss, run.teachers) == ("teachers", "ft", None, ())
        assert (run.fold, run.seed) == (2, 5)
    assert [run.id for run in build_run_graph(experiment(paradigms=["ft", "mtkd"])).teachers] == [
        f"teacher-{c}-f2-s5" for c in LANGUAGES
    ]


def test_students_with_a_different_recipe():
    config = experiment(same_recipe=False, setups=["monolingual", "multilingual"])
    runs = {run.id: run for run in build_run_graph(config).students}
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
    students = build_run_graph(config).students
    assert [run for run in students if run.paradigm == "ft"] == list(build_run_graph(config).teachers)
    assert [run.id for run in students if run.stage == "distill"][:1] == ["kd-en-f2-s5"]
    alone = experiment(paradigms=["ft", "mtkd"])  # no multilingual teacher is trained without kd
    assert [run.id for run in build_run_graph(alone).students] == ["ft-multilingual-f2-s5", "mtkd-multilingual-f2-s5"]


@pytest.mark.parametrize("same_recipe", [True, False])
def test_teachers_of_students_exist(same_recipe):
    config = experiment(same_recipe=same_recipe, setups=["monolingual", "multilingual"])
    known = {run.id for run in build_run_graph(config).teachers}
    runs = [*build_run_graph(config).teachers] + [
        run for run in build_run_graph(config).students if run.stage == "distill"
    ]
    assert len({run.id for run in runs}) == len(runs)
    assert {teacher for run in runs for teacher in run.teachers} == known
    for run in runs:
        assert Run.model_validate(to_dict(run)) == run


def test_folders():
    config = experiment(base="shared")
    teacher, student = build_run_graph(config).teachers[0], build_run_graph(config).students[-1]
    assert teacher.folder(config) == "/outputs/shared/teachers/teacher-en-f2-s5"
    assert student.folder(config) == "/outputs/t/distill/mtkd-multilingual-f2-s5"


def paper(fold: int, **distill: Any) -> Experiment:
    """Corpora with five, nine and three folds."""
    corpora = [
        {"name": name, "importer": name, "root": "x", "languages": [code], "split": {"scheme": "paper"}}
        for name, code in (("iemocap", "en"), ("fesc", "fi"), ("cafe", "fr"))
    ]
    return Experiment.model_validate(to_dict(experiment(**distill)) | {"fold": fold, "corpora": corpora})


def test_a_repeated_fold_shares_its_runs():
    assert [run.id for run in build_run_graph(paper(7)).teachers] == [
        "teacher-en-f2-s5", "teacher-fi-f7-s5", "teacher-fr-f1-s5", "teacher-all-f7-s5",
    ]  # fmt: skip
    students = {run.id: run for run in build_run_graph(paper(7, setups=["monolingual", "multilingual"])).students}
    assert "mtkd-en-f7-s5" in students  # its teachers of other languages are this fold's
    assert students["mtkd-en-f7-s5"].teachers == ("teacher-en-f2-s5", "teacher-fi-f7-s5", "teacher-fr-f1-s5")
    teachers = {run.id for fold in range(9) for run in build_run_graph(paper(fold)).teachers}
    assert len(teachers) == 5 + 9 + 3 + 9


def test_folds_whose_number_depends_on_the_data_have_different_runs():
    content = to_dict(experiment())
    content["corpora"][0]["split"]["scheme"] = "leave-one-speaker-out"
    runs = [build_run_graph(Experiment.model_validate(content | {"fold": fold})).teachers[0].id for fold in (0, 4, 8)]
    assert len(set(runs)) == 3


def test_cross_fitted_teachers():
    config = experiment(paradigms=["mtkd"], mtkd={"weighting": "confidence"})
    parts = [f"teacher-en-f2-s5-crossfit-{number}of3" for number in (1, 2, 3)]
    runs = {run.id: run for run in build_run_graph(config).cross_fitted}
    assert list(runs)[:3] == parts and len(runs) == 9
    assert runs[parts[1]].held_out_fold is not None and runs[parts[1]].held_out_fold.index == 1
    (student,) = build_run_graph(config).students
    assert student.teachers == tuple(run.id for run in build_run_graph(config).teachers)
    assert set(student.dependencies) == {*student.teachers, *runs}
    order = [run.id for run in build_run_graph(config).all_runs]
    assert all(order.index(need) < order.index(student.id) for need in student.dependencies)
    assert build_run_graph(experiment(mtkd={"weighting": "confidence", "cross_fit": 0})).cross_fitted == ()
    assert build_run_graph(experiment()).cross_fitted == ()


def test_only_students_have_a_variant_in_their_ids():
    config = experiment(paradigms=["mtkd"]).model_copy(update={"variant": "half"})
    assert [run.id for run in build_run_graph(config).students] == ["mtkd-multilingual-half-f2-s5"]
    assert build_run_graph(config).teachers == build_run_graph(experiment(paradigms=["mtkd"])).teachers


def test_lookups_in_a_graph():
    external = {"name": "theirs", "checkpoint": "hub/model", "language": "fi"}
    graph = build_run_graph(experiment(setups=["monolingual", "multilingual"], external_teachers=[external]))
    assert [run.stage for run in graph.trained_students] == ["distill"] * (len(graph.students) - len(graph.teachers))
    assert {run.id for run in graph.evaluated} == {run.id for run in (*graph.teachers, *graph.students)}
    assert len(graph.evaluated) == len({run.id for run in graph.evaluated})
    assert graph.get("teacher-en-f2-s5") is graph.teachers[0] and "teacher-en-f2-s5" in graph
    assert graph.is_teacher("teacher-en-f2-s5") and graph.is_student("teacher-en-f2-s5")
    assert graph.is_student("kd-en-f2-s5") and not graph.is_teacher("kd-en-f2-s5")
    assert list(graph.external_teachers) == ["external-theirs"] and "external-theirs" not in graph
    assert all("external-theirs" not in run.dependencies for run in graph.students)
    with pytest.raises(KeyError):
        graph.get("external-theirs")
