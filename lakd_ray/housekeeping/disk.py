"""What an experiment will take, stage by stage, beside what lies there now.

Estimates err upwards: weights in fp32, every search trial trained to its end. Corpora are measured by their listing and
by a few recordings, models by transformers without allocating them.
"""

from dataclasses import asdict, dataclass
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment, Stage
from lakd_ray.housekeeping import sizes
from lakd_ray.runs import Run, cross_fitted_runs, student_runs, teacher_runs

_SMALL = 1_000_000  # records, metrics and pictures of a stage


@dataclass(frozen=True)
class Part:
    """One stage's bytes."""

    stage: str
    what: str
    finished: int
    """Once the stage is finished."""
    peak: int
    """At most while it runs."""
    there: int
    """Now."""


@dataclass(frozen=True)
class Usage:
    """The whole experiment's bytes; `source` and `temporary` are not among the parts."""

    folder: str
    parts: tuple[Part, ...]
    source: int
    """The corpora themselves."""
    temporary: int
    """In each worker's temporary folder while it saves."""
    free: int | None
    """On the storage's disk; None for a bucket."""
    notes: tuple[str, ...]

    @property
    def finished(self) -> int:
        """Once all stages are finished."""
        return sum(part.finished for part in self.parts)

    @property
    def there(self) -> int:
        """Now."""
        return sum(part.there for part in self.parts)

    @property
    def missing(self) -> int:
        """Bytes that have to be free for what is left, at most: stages run one after the other."""
        left = [max(0, part.finished - part.there) for part in self.parts]
        most = max((part.peak - part.finished for part in self.parts), default=0)
        return sum(left) + max(0, most)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        totals = {"finished": self.finished, "there": self.there, "missing": self.missing}
        return asdict(self) | {"notes": list(self.notes), "total": totals}


def measure(config: Experiment) -> Usage:
    """Estimate and list.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers refuses an architecture.
    """
    notes: list[str] = []
    there = _there(config)
    speech = sizes.speech(config, notes)
    teacher, student = (sizes.weights(recipe.model, config, notes) for recipe in (config.teacher, config.student))
    known = {run.id for run in teacher_runs(config)}
    predictions = _predictions(config, speech.utterances)
    stages: dict[Stage, tuple[str, int, int]] = {
        "prepare": _prepared(speech),
        "teachers": _teachers(config, teacher, speech.utterances),
        "distill": _training(config, student, [run for run in student_runs(config) if run.id not in known]),
        "tune": _search(config, student),
        "evaluate": ("predictions", predictions, predictions),
        "report": ("report.json, report.html", 2 * _SMALL, 2 * _SMALL),
    }
    parts = []
    for stage, (what, finished, peak) in stages.items():
        if config.base is not None and stage in ("prepare", "teachers"):
            notes.append(f"{stage}: those of {config.base} are used")
        elif stage in config.stages or there.get(stage):
            parts.append(Part(stage, what, finished, peak, there.pop(stage, 0)))
    if rest := sum(there.values()):
        parts.append(Part("other", ", ".join(sorted(there)), rest, rest, rest))
    return Usage(
        folder=config.folder,
        parts=tuple(parts),
        source=speech.source,
        temporary=max(weights.checkpoint + weights.resume for weights in (teacher, student)),
        free=None if storage.is_remote(config.storage) else storage.free_bytes(config.storage),
        notes=tuple(dict.fromkeys(notes)),
    )


def _there(config: Experiment) -> dict[str, int]:
    """Bytes of every folder directly below the experiment's."""
    found: dict[str, int] = {}
    for info in storage.list_files(config.folder):
        stage = info.location[len(config.folder) + 1 :].partition("/")[0]
        found[stage] = found.get(stage, 0) + info.size
    return found


def _prepared(speech: sizes.Speech) -> tuple[str, int, int]:
    size = speech.shards + speech.features
    return "FLAC shards and manifest" + (", cached features" if speech.features else ""), size, size


def _teachers(config: Experiment, weights: sizes.Weights, utterances: int) -> tuple[str, int, int]:
    what, finished, peak = _training(config, weights, [*teacher_runs(config), *cross_fitted_runs(config)])
    names = {name for run in student_runs(config) for name in run.teachers}
    logits = len(names) * utterances * sizes.logits_row(config)
    return f"{what}, logits of {len(names)}", finished + logits, peak + logits


def _training(config: Experiment, weights: sizes.Weights, runs: list[Run]) -> tuple[str, int, int]:
    """A finished run keeps its best checkpoints; a running one has one more of everything for a moment."""
    finished = len(runs) * (config.train.keep_best * weights.checkpoint + _SMALL)
    at_once = min(len(runs), config.train.side_by_side)
    states = config.train.keep_states + 1
    return f"{len(runs)} runs", finished, finished + at_once * (weights.checkpoint + states * weights.resume)


def _search(config: Experiment, weights: sizes.Weights) -> tuple[str, int, int]:
    """A trial that is stopped early keeps the states to go on from, and what was best before each."""
    trials, at_once = config.tune.trials, min(config.tune.trials, config.tune.concurrent)
    states = config.train.keep_states
    finished = trials * ((config.train.keep_best + states - 1) * weights.checkpoint + states * weights.resume + _SMALL)
    peak = finished + at_once * (weights.checkpoint + weights.resume)
    return f"{trials} trials", finished, peak


def _predictions(config: Experiment, utterances: int) -> int:
    models = len({run.id for run in (*teacher_runs(config), *student_runs(config))})
    return models * utterances * sizes.logits_row(config)


def table(usage: Usage) -> str:
    """The usage for people."""
    size = storage.size_text
    rows = [("stage", "finished", "at most", "now", "")]
    rows += [(part.stage, size(part.finished), size(part.peak), size(part.there), part.what) for part in usage.parts]
    peak = usage.there + usage.missing
    rows.append(("total", size(usage.finished), size(peak), size(usage.there), usage.folder))
    lines = [f"{row[0]:<10}{row[1]:>12}{row[2]:>12}{row[3]:>12}  {row[4]}".rstrip() for row in rows]
    lines.append(f"the corpora themselves take {size(usage.source)}")
    lines.append(f"every worker's temporary folder needs up to {size(usage.temporary)} while it saves")
    if usage.free is not None:
        enough = "enough" if usage.free >= usage.missing else "NOT ENOUGH: free some, or choose another `storage`"
        lines.append(f"free on that disk: {size(usage.free)}; still to come at most {size(usage.missing)}: {enough}")
    return "\n".join([*lines, *(f"note: {note}" for note in usage.notes)])
