"""Which training runs an experiment consists of, where they lie, and which depend on which.

A run trains one network once: a paradigm, the languages it sees, a fold and a seed. Teachers are runs of paradigm ft.
"""

from typing import Any

from lakd_ray import storage
from lakd_ray.config import DistillLoss, Experiment, Paradigm, Recipe, Section, Setup, dump

ALL_LANGUAGES_TEACHER = "teacher-all"


class Run(Section):
    """One training run, complete in itself."""

    id: str
    """Unique in the experiment, and its folder's name."""
    stage: str
    """`teachers` or `distill`: the stage whose folder it lies in."""
    paradigm: Paradigm
    """How it is trained."""
    setup: Setup
    """Whether it sees one language or all."""
    languages: tuple[str, ...]
    """Languages it is trained and selected on."""
    emotions: tuple[str, ...]
    """Classes in the order of its logits."""
    fold: int
    """Which fold is test."""
    seed: int
    """Seeds weights, dropout and the order of the data."""
    recipe: Recipe
    """Network and optimizer."""
    loss: DistillLoss | None = None
    """Distillation loss; none for ft."""
    teachers: tuple[str, ...] = ()
    """Ids of the runs whose logits it learns from, in the order of the teacher axis."""

    def folder(self, experiment_folder: str) -> str:
        """Where the run's outputs lie."""
        return storage.join(experiment_folder, self.stage, self.id)


def teacher_runs(config: Experiment) -> list[Run]:
    """One teacher per language, and the multilingual one if kd is among the paradigms."""
    runs = [
        _run(config, f"teacher-{language}", "teachers", "ft", "monolingual", (language,), config.teacher)
        for language in config.languages
    ]
    if "kd" in config.distill.paradigms:
        runs.append(
            _run(config, ALL_LANGUAGES_TEACHER, "teachers", "ft", "multilingual", config.languages, config.teacher)
        )
    return runs


def student_runs(config: Experiment) -> list[Run]:
    """Every student. An ft student that is trained exactly as a teacher is that teacher's run, not another one."""
    trained = {_training(run): run for run in teacher_runs(config)}
    students = []
    for setup in config.distill.setups:
        groups = [config.languages] if setup == "multilingual" else [(language,) for language in config.languages]
        for paradigm in config.distill.paradigms:
            for languages in groups:
                suffix = "multilingual" if setup == "multilingual" else languages[0]
                run = _run(config, f"{paradigm}-{suffix}", "distill", paradigm, setup, languages, config.student)
                students.append(trained.get(_training(run), run))
    return students


def _run(
    config: Experiment,
    id: str,
    stage: str,
    paradigm: Paradigm,
    setup: Setup,
    languages: tuple[str, ...],
    recipe: Recipe,
) -> Run:
    loss = {"ft": None, "kd": config.distill.kd, "mtkd": config.distill.mtkd}[paradigm]
    teachers: tuple[str, ...] = {
        "ft": (),
        "kd": (ALL_LANGUAGES_TEACHER,),
        "mtkd": tuple(f"teacher-{language}" for language in config.languages),
    }[paradigm]
    return Run(
        id=id,
        stage=stage,
        paradigm=paradigm,
        setup=setup,
        languages=languages,
        emotions=config.emotions,
        fold=config.fold,
        seed=config.seed,
        recipe=recipe,
        loss=loss,
        teachers=teachers,
    )


def _training(run: Run) -> str:
    """What the run does, whatever it is called."""
    content: dict[str, Any] = dump(run)
    return str({key: value for key, value in content.items() if key not in ("id", "stage")})
