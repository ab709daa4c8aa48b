"""The training runs of an experiment and their dependencies.

A run trains one network once: a paradigm, the languages it is trained on, a fold and a seed. Teachers are runs of
paradigm ft. A run's id describes its content, so that folds and students that need the same run share it:

    teacher-en-f0-s42                  language, fold, seed
    teacher-en-f0-s42-crossfit-1of3    the same, trained on two thirds of its training speakers; it predicts the others
    mtkd-multilingual-half-f0-s42      paradigm, setup or language, variant, fold, seed
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    """A cross-fitting fold, which is one of several disjoint parts of a run's training speakers."""

    index: int
    num_cross_fit_folds: int


class Run(Section):
    """One training run with all the settings that define it."""

    id: str
    """Unique in the experiment, and the name of its folder."""
    stage: str
    """`teachers`, `distill` or `tune`: the stage in whose folder the run is stored."""
    paradigm: Paradigm
    """How it is trained."""
    setup: Setup
    """Whether it is trained on one language or on all."""
    languages: tuple[str, ...]
    """Languages it is trained and selected on."""
    emotions: tuple[str, ...]
    """Classes in the order of its logits."""
    fold: int
    """Index of the test fold."""
    seed: int
    """Seeds weights, dropout and the order of the data."""
    recipe: Recipe
    """Network and optimizer."""
    variant: str | None = None
    """Name of the grid variant whose settings a student has."""
    held_out_fold: SpeakerFold | None = None
    """Training speakers that it is not trained on."""
    loss: DistillLossConfig | None = None
    """Distillation loss; None for ft."""
    teachers: tuple[str, ...] = ()
    """Ids of the teachers whose logits it learns from, in the order of the teacher axis: runs, external teachers."""
    teacher_languages: tuple[str | None, ...] = ()
    """Language of each teacher, None for a teacher of several languages."""

    def folder(self, config: Experiment) -> str:
        """Return the folder of the run's outputs."""
        return storage.join(config.stage_folder(self.stage), self.id)

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Ids of the runs that must be trained before: teachers, including those for cross-fitting."""
        num_cross_fit_folds = self.loss.num_cross_fit_folds if self.loss else 0
        trained_here = tuple(name for name in self.teachers if not name.startswith(_EXTERNAL_PREFIX))
        return trained_here + tuple(
            _cross_fit_id(name, fold) for name in trained_here for fold in _folds(num_cross_fit_folds)
        )

    @property
    def training_key(self) -> str:
        """A key that is equal for two runs that train the same weights, whatever their names."""
        content: dict[str, Any] = to_dict(self)
        return str({key: value for key, value in content.items() if key not in ("id", "stage", "variant")})


@dataclass(frozen=True)
class RunGraph:
    """All runs of one cell: an experiment with a fold, a seed and a variant. Built once by `build_run_graph`."""

    config: Experiment
    """The experiment with the cell's fold, seed and variant."""
    teachers: tuple[Run, ...]
    """One teacher per language, and the multilingual one if a student needs it."""
    cross_fitted: tuple[Run, ...]
    """Teachers trained on parts of their speakers, for students whose loss uses cross-fitting."""
    students: tuple[Run, ...]
    """All students. An ft student that is trained exactly as a teacher is that teacher's run."""
    external_teachers: Mapping[str, ExternalTeacherConfig]
    """External teachers by id."""

    @cached_property
    def all_runs(self) -> tuple[Run, ...]:
        """All runs, each once, teachers before the students that need them."""
        return tuple(self._by_id.values())

    @cached_property
    def trained_students(self) -> tuple[Run, ...]:
        """Students with a separate training run: those that are not also a teacher."""
        return tuple(run for run in self.students if not self.is_teacher(run.id))

    @cached_property
    def evaluated(self) -> tuple[Run, ...]:
        """Teachers and students, each once: the runs whose models are evaluated on test."""
        return tuple({run.id: run for run in (*self.teachers, *self.students)}.values())

    def get(self, run_id: str) -> Run:
        """Return the run with this id.

        Raises:
            KeyError: the graph has no such run.
        """
        return self._by_id[run_id]

    def __contains__(self, run_id: object) -> bool:
        """Return whether the graph has a run with this id."""
        return run_id in self._by_id

    def is_teacher(self, run_id: str) -> bool:
        """Return whether a run with this id is one of `teachers`."""
        return run_id in self._teacher_ids

    def is_student(self, run_id: str) -> bool:
        """Return whether a run with this id is one of `students`."""
        return run_id in self._student_ids

    @cached_property
    def _by_id(self) -> dict[str, Run]:
        return {run.id: run for run in (*self.teachers, *self.cross_fitted, *self.students)}

    @cached_property
    def _teacher_ids(self) -> frozenset[str]:
        return frozenset(run.id for run in self.teachers)

    @cached_property
    def _student_ids(self) -> frozenset[str]:
        return frozenset(run.id for run in self.students)


def build_run_graph(config: Experiment) -> RunGraph:
    """Build the graph of the runs of an experiment in its fold, with its seed and variant."""
    teachers = _teachers(config)
    students = _students(config, teachers)
    external = {external_teacher_id(teacher): teacher for teacher in config.distill.external_teachers}
    return RunGraph(config, tuple(teachers), tuple(_cross_fitted(teachers, students)), tuple(students), external)


def external_teacher_id(teacher: ExternalTeacherConfig) -> str:
    """Return the id of an external teacher among a student's teachers."""
    return _EXTERNAL_PREFIX + teacher.name


def _teachers(config: Experiment) -> list[Run]:
    teachers = [_teacher(config, code, (code,)) for code in config.languages]
    if "kd" in config.distill.paradigms:
        teachers.append(_teacher(config, ALL_LANGUAGES, config.languages))
    return teachers


def _cross_fitted(teachers: Sequence[Run], students: Sequence[Run]) -> list[Run]:
    by_id = {teacher.id: teacher for teacher in teachers}
    runs: dict[str, Run] = {}
    for student in students:
        for name in student.teachers:
            num_cross_fit_folds = student.loss.num_cross_fit_folds if student.loss and name in by_id else 0
            for fold in _folds(num_cross_fit_folds):
                run = by_id[name].model_copy(update={"id": _cross_fit_id(name, fold), "held_out_fold": fold})
                runs.setdefault(run.id, run)
    return list(runs.values())


def _students(config: Experiment, teachers: Sequence[Run]) -> list[Run]:
    trained = {teacher.training_key: teacher for teacher in teachers}
    students = []
    for setup in config.distill.setups:
        groups = [config.languages] if setup == "multilingual" else [(language,) for language in config.languages]
        for paradigm in config.distill.paradigms:
            for languages in groups:
                student = _student(config, teachers, paradigm, setup, languages)
                students.append(trained.get(student.training_key, student))
    return students


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


def _student(
    config: Experiment, all_teachers: Sequence[Run], paradigm: Paradigm, setup: Setup, languages: LanguageCodes
) -> Run:
    losses: dict[str, DistillLossConfig] = {"kd": config.distill.kd, "mtkd": config.distill.mtkd}
    teacher_setup = {"ft": None, "kd": "multilingual", "mtkd": "monolingual"}[paradigm]
    teachers = [run for run in all_teachers if run.setup == teacher_setup]
    external = config.distill.external_teachers if paradigm == "mtkd" else ()
    teacher_languages = {code for teacher in teachers for code in teacher.languages}
    fold = _effective_fold(config, tuple(sorted({*languages, *teacher_languages})))
    scope = "multilingual" if setup == "multilingual" else languages[0]
    names = [paradigm, scope, config.variant, f"f{fold}", f"s{config.seed}"]
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
        loss=losses.get(paradigm),
        teachers=(*(run.id for run in teachers), *map(external_teacher_id, external)),
        teacher_languages=(
            *(run.languages[0] if len(run.languages) == 1 else None for run in teachers),
            *(teacher.language for teacher in external),
        ),
    )


def _effective_fold(config: Experiment, languages: LanguageCodes) -> int:
    """Return the first fold with the same split of these languages: a smaller corpus repeats its folds in a cycle."""
    corpora = [corpus for corpus in config.corpora if not corpus.languages or set(corpus.languages) & set(languages)]
    counts = [corpus.split.num_folds(corpus.importer) for corpus in corpora]
    known = [count for count in counts if count]
    return config.fold % math.lcm(*known) if len(known) == len(counts) else config.fold


def _folds(count: int) -> list[SpeakerFold]:
    return [SpeakerFold(index=index, num_cross_fit_folds=count) for index in range(count)]


def _cross_fit_id(teacher: str, fold: SpeakerFold) -> str:
    return f"{teacher}-crossfit-{fold.index + 1}of{fold.num_cross_fit_folds}"
