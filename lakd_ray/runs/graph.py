"""Which training runs an experiment consists of, where they lie, and which depend on which.

A run trains one network once: a paradigm, the languages it sees, a fold and a seed. Teachers are runs of paradigm ft.
Runs are named by what they are, so that one that several folds or students need is one run:

    teacher-en-f0-s42                  language, fold, seed
    teacher-en-f0-s42-crossfit-1of3    the same on two thirds of its training speakers, to be asked about the others
    mtkd-multilingual-half-f0-s42      paradigm, set-up or language, variant, fold, seed
"""

import math
from typing import Any

from lakd_ray import storage
from lakd_ray.config import (
    DistillLossConfig,
    Experiment,
    ExternalTeacherConfig,
    Paradigm,
    Recipe,
    Section,
    Setup,
    to_dict,
)

LanguageCodes = tuple[str, ...]

ALL_LANGUAGES = "all"
_EXTERNAL_PREFIX = "external-"


class SpeakerFold(Section):
    """One of several parts of a run's training speakers."""

    index: int
    num_folds: int


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
    variant: str | None = None
    """Whose settings a student has."""
    held_out_fold: SpeakerFold | None = None
    """Training speakers that it is not trained on."""
    loss: DistillLossConfig | None = None
    """Distillation loss; none for ft."""
    teachers: tuple[str, ...] = ()
    """Ids of those whose logits it learns from, in the order of the teacher axis: runs, and teachers brought along."""
    teacher_languages: tuple[str | None, ...] = ()
    """Language of each teacher, None for one of several languages."""

    def folder(self, config: Experiment) -> str:
        """Where the run's outputs lie."""
        return storage.join(config.stage_folder(self.stage), self.id)

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Ids of the runs that must be trained before: teachers, those of cross-fitting included."""
        parts = self.loss.num_cross_fit_folds if self.loss else 0
        own = tuple(name for name in self.teachers if not name.startswith(_EXTERNAL_PREFIX))
        return own + tuple(_cross_fit_id(name, part) for name in own for part in _speaker_folds(parts))

    @property
    def training_key(self) -> str:
        """What the run does, whatever it is called."""
        content: dict[str, Any] = to_dict(self)
        return str({key: value for key, value in content.items() if key not in ("id", "stage", "variant")})


def teacher_runs(config: Experiment) -> list[Run]:
    """One teacher per language, and the multilingual one if kd is among the paradigms."""
    runs = [_teacher(config, code, (code,)) for code in config.languages]
    if "kd" in config.distill.paradigms:
        runs.append(_teacher(config, ALL_LANGUAGES, config.languages))
    return runs


def cross_fitted_runs(config: Experiment) -> list[Run]:
    """Teachers on parts of their speakers, where a student's loss asks for them."""
    teachers = {run.id: run for run in teacher_runs(config)}
    found: dict[str, Run] = {}
    for student in student_runs(config):
        for name in student.teachers:
            for part in _speaker_folds(student.loss.num_cross_fit_folds if student.loss and name in teachers else 0):
                run = teachers[name].model_copy(update={"id": _cross_fit_id(name, part), "held_out_fold": part})
                found.setdefault(run.id, run)
    return list(found.values())


def student_runs(config: Experiment) -> list[Run]:
    """Every student. An ft student that is trained exactly as a teacher is that teacher's run, not another one."""
    trained = {run.training_key: run for run in teacher_runs(config)}
    students = []
    for setup in config.distill.setups:
        groups = [config.languages] if setup == "multilingual" else [(language,) for language in config.languages]
        for paradigm in config.distill.paradigms:
            for languages in groups:
                run = _student(config, paradigm, setup, languages)
                students.append(trained.get(run.training_key, run))
    return students


def all_runs(config: Experiment) -> list[Run]:
    """All runs, each once, teachers before the students that need them."""
    runs = [*teacher_runs(config), *cross_fitted_runs(config), *student_runs(config)]
    return list({run.id: run for run in runs}.values())


def predictions_folder(config: Experiment) -> str:
    """Where evaluation writes what was predicted in this fold with this seed."""
    return storage.join(config.stage_folder("evaluate"), "predictions", config.cell)


def language_conditions_folder(config: Experiment) -> str:
    """Where it writes what language-aware students answer when their language is told, heard, hidden or mistaken."""
    return storage.join(config.stage_folder("evaluate"), "languages", config.cell)


def _teacher(config: Experiment, name: str, languages: LanguageCodes) -> Run:
    fold = _effective_fold(config, languages)
    return Run(
        id=f"teacher-{name}-f{fold}-s{config.seed}",
        stage="teachers",
        paradigm="ft",
        setup="multilingual" if name == ALL_LANGUAGES else "monolingual",
        languages=languages,
        emotions=config.emotions,
        fold=fold,
        seed=config.seed,
        recipe=config.teacher,
    )


def _student(config: Experiment, paradigm: Paradigm, setup: Setup, languages: LanguageCodes) -> Run:
    loss: dict[str, DistillLossConfig] = {"kd": config.distill.kd, "mtkd": config.distill.mtkd}
    teachers = {
        "ft": [],
        "kd": [run for run in teacher_runs(config) if run.setup == "multilingual"],
        "mtkd": [run for run in teacher_runs(config) if run.setup == "monolingual"],
    }[paradigm]
    brought = config.distill.external_teachers if paradigm == "mtkd" else ()
    taught = {code for teacher in teachers for code in teacher.languages}
    fold = _effective_fold(config, tuple(sorted({*languages, *taught})))
    sees = "multilingual" if setup == "multilingual" else languages[0]
    names = [paradigm, sees, config.variant, f"f{fold}", f"s{config.seed}"]
    return Run(
        id="-".join(filter(None, names)),
        stage="distill",
        paradigm=paradigm,
        setup=setup,
        languages=languages,
        emotions=config.emotions,
        fold=fold,
        seed=config.seed,
        recipe=config.student,
        variant=config.variant,
        loss=loss.get(paradigm),
        teachers=(*(run.id for run in teachers), *map(external_teacher_id, brought)),
        teacher_languages=(
            *(run.languages[0] if len(run.languages) == 1 else None for run in teachers),
            *(one.language for one in brought),
        ),
    )


def _effective_fold(config: Experiment, languages: LanguageCodes) -> int:
    """The first fold with the same division of these languages: those of smaller corpora come round again."""
    speaking = [corpus for corpus in config.corpora if not corpus.languages or set(corpus.languages) & set(languages)]
    counts = [corpus.split.num_folds(corpus.importer) for corpus in speaking]
    known = [count for count in counts if count]
    return config.fold % math.lcm(*known) if len(known) == len(counts) else config.fold


def external_teacher_id(teacher: ExternalTeacherConfig) -> str:
    """What a teacher that was trained elsewhere is called among a student's teachers."""
    return _EXTERNAL_PREFIX + teacher.name


def _speaker_folds(count: int) -> list[SpeakerFold]:
    return [SpeakerFold(index=number, num_folds=count) for number in range(count)]


def _cross_fit_id(teacher: str, fold: SpeakerFold) -> str:
    return f"{teacher}-crossfit-{fold.index + 1}of{fold.num_folds}"
