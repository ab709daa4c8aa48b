"""Which training runs an experiment consists of, where they lie, and which depend on which.

A run trains one network once: a paradigm, the languages it sees, a fold and a seed. Teachers are runs of paradigm ft.
"""

from typing import Any

from lakd_ray import storage
from lakd_ray.config import DistillLoss, Experiment, Paradigm, Recipe, Section, Setup, dump

Languages = tuple[str, ...]

ALL_LANGUAGES_TEACHER = "teacher-all"


class Run(Section):
    """One training run, complete in itself."""

    id: str
    """Unique in the experiment, and its folder's name."""
    stage: str
    """`teachers`, `distill` or `tune`: the stage whose folder it lies in."""
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

    def folder(self, config: Experiment) -> str:
        """Where the run's outputs lie."""
        return storage.join(config.stage_folder(self.stage), self.id)


def teacher_runs(config: Experiment) -> list[Run]:
    """One teacher per language, and the multilingual one if kd is among the paradigms."""
    runs = [
        _run(config, id=f"teacher-{code}", stage="teachers", paradigm="ft", setup="monolingual", languages=(code,))
        for code in config.languages
    ]
    if "kd" in config.distill.paradigms:
        shape: dict[str, Any] = {"paradigm": "ft", "setup": "multilingual", "languages": config.languages}
        runs.append(_run(config, id=ALL_LANGUAGES_TEACHER, stage="teachers", **shape))
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
                shape: dict[str, Any] = {"paradigm": paradigm, "setup": setup, "languages": languages}
                run = _run(config, id=f"{paradigm}-{suffix}", stage="distill", **shape)
                students.append(trained.get(_training(run), run))
    return students


def _run(config: Experiment, *, id: str, stage: str, paradigm: Paradigm, setup: Setup, languages: Languages) -> Run:
    recipe = config.teacher if stage == "teachers" else config.student
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
