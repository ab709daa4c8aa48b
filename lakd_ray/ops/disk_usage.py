"""What an experiment will take, stage by stage, beside what lies there now.

Estimates err upwards: weights in fp32, every search trial trained to its end. Corpora are measured by their listing and
by a few recordings, models by transformers without allocating them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment, Stage
from lakd_ray.ops import size_estimates
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph

_STAGE_METADATA_BYTES = 1_000_000  # records, metrics and pictures of a stage


@dataclass(frozen=True)
class StageUsage:
    """One stage's bytes."""

    stage: str
    contents: str
    final: int
    """Once the stage is finished."""
    peak: int
    """At most while it runs."""
    current: int
    """Now."""


@dataclass(frozen=True)
class DiskUsage:
    """The whole experiment's bytes; `source` and `temporary` are not among the parts."""

    folder: str
    stages: tuple[StageUsage, ...]
    corpora: int
    """The corpora themselves."""
    temporary: int
    """In each worker's temporary folder while it saves."""
    free: int | None
    """On the storage's disk; None for a bucket."""
    notes: tuple[str, ...]

    @property
    def final(self) -> int:
        """Once all stages are finished."""
        return sum(part.final for part in self.stages)

    @property
    def current(self) -> int:
        """Now."""
        return sum(part.current for part in self.stages)

    @property
    def required(self) -> int:
        """Bytes that have to be free for what is left, at most: stages run one after the other."""
        left = [max(0, part.final - part.current) for part in self.stages]
        most = max((part.peak - part.final for part in self.stages), default=0)
        return sum(left) + max(0, most)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        totals = {"final": self.final, "current": self.current, "required": self.required}
        return asdict(self) | {"notes": list(self.notes), "total": totals}


def estimate_usage(config: Experiment) -> DiskUsage:
    """Estimate and list.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers refuses an architecture.
    """
    notes: list[str] = []
    there = _current_sizes(config)
    speech = size_estimates.estimate_corpus_size(config, notes)
    teacher, student = (
        size_estimates.estimate_checkpoint_size(recipe.model, config, notes)
        for recipe in (config.teacher, config.student)
    )
    graph = build_run_graph(config)
    predictions = _estimate_predictions(graph, speech.utterances)
    stages: dict[Stage, tuple[str, int, int]] = {
        "prepare": _estimate_prepare(speech),
        "teachers": _estimate_teachers(graph, teacher, speech.utterances),
        "distill": _estimate_runs(config, student, graph.trained_students),
        "tune": _estimate_search(config, student),
        "evaluate": ("predictions", predictions, predictions),
        "report": ("report.json, report.html", 2 * _STAGE_METADATA_BYTES, 2 * _STAGE_METADATA_BYTES),
    }
    parts = []
    for stage, (what, finished, peak) in stages.items():
        if config.base_experiment is not None and stage in ("prepare", "teachers"):
            notes.append(f"{stage}: those of {config.base_experiment} are used")
        elif stage in config.stages or there.get(stage):
            parts.append(StageUsage(stage, what, finished, peak, there.pop(stage, 0)))
    if rest := sum(there.values()):
        parts.append(StageUsage("other", ", ".join(sorted(there)), rest, rest, rest))
    return DiskUsage(
        folder=config.folder,
        stages=tuple(parts),
        corpora=speech.corpora,
        temporary=max(weights.checkpoint + weights.resume for weights in (teacher, student)),
        free=None if storage.is_remote(config.storage) else storage.free_bytes(config.storage),
        notes=tuple(dict.fromkeys(notes)),
    )


def _current_sizes(config: Experiment) -> dict[str, int]:
    """Bytes of every folder directly below the experiment's."""
    found: dict[str, int] = {}
    for info in storage.list_files(config.folder):
        stage = info.location[len(config.folder) + 1 :].partition("/")[0]
        found[stage] = found.get(stage, 0) + info.size
    return found


def _estimate_prepare(corpus_size: size_estimates.CorpusSize) -> tuple[str, int, int]:
    size = corpus_size.shards + corpus_size.features
    return "FLAC shards and manifest" + (", cached features" if corpus_size.features else ""), size, size


def _estimate_teachers(
    graph: RunGraph, checkpoint_size: size_estimates.CheckpointSize, utterances: int
) -> tuple[str, int, int]:
    what, finished, peak = _estimate_runs(graph.config, checkpoint_size, (*graph.teachers, *graph.cross_fitted))
    names = {name for run in graph.students for name in run.teachers}
    logits = len(names) * utterances * size_estimates.logits_row_bytes(graph.config)
    return f"{what}, logits of {len(names)}", finished + logits, peak + logits


def _estimate_runs(
    config: Experiment, checkpoint_size: size_estimates.CheckpointSize, runs: Sequence[Run]
) -> tuple[str, int, int]:
    """A finished run keeps its best checkpoints; a running one has one more of everything for a moment."""
    finished = len(runs) * (config.train.keep_checkpoints * checkpoint_size.checkpoint + _STAGE_METADATA_BYTES)
    at_once = min(len(runs), config.train.parallel_runs)
    states = config.train.keep_resume_states + 1
    return (
        f"{len(runs)} runs",
        finished,
        finished + at_once * (checkpoint_size.checkpoint + states * checkpoint_size.resume),
    )


def _estimate_search(config: Experiment, checkpoint_size: size_estimates.CheckpointSize) -> tuple[str, int, int]:
    """A trial that is stopped early keeps the states to go on from, and what was best before each."""
    trials, at_once = config.tune.trials, min(config.tune.trials, config.tune.max_concurrent_trials)
    states = config.train.keep_resume_states
    finished = trials * (
        (config.train.keep_checkpoints + states - 1) * checkpoint_size.checkpoint
        + states * checkpoint_size.resume
        + _STAGE_METADATA_BYTES
    )
    peak = finished + at_once * (checkpoint_size.checkpoint + checkpoint_size.resume)
    return f"{trials} trials", finished, peak


def _estimate_predictions(graph: RunGraph, utterances: int) -> int:
    return len(graph.evaluated) * utterances * size_estimates.logits_row_bytes(graph.config)


def format_usage(usage: DiskUsage) -> str:
    """The usage for people."""
    size = storage.format_bytes
    rows = [("stage", "finished", "at most", "now", "")]
    rows += [
        (part.stage, size(part.final), size(part.peak), size(part.current), part.contents) for part in usage.stages
    ]
    peak = usage.current + usage.required
    rows.append(("total", size(usage.final), size(peak), size(usage.current), usage.folder))
    lines = [f"{row[0]:<10}{row[1]:>12}{row[2]:>12}{row[3]:>12}  {row[4]}".rstrip() for row in rows]
    lines.append(f"the corpora themselves take {size(usage.corpora)}")
    lines.append(f"every worker's temporary folder needs up to {size(usage.temporary)} while it saves")
    if usage.free is not None:
        enough = "enough" if usage.free >= usage.required else "NOT ENOUGH: free some, or choose another `storage`"
        lines.append(f"free on that disk: {size(usage.free)}; still to come at most {size(usage.required)}: {enough}")
    return "\n".join([*lines, *(f"note: {note}" for note in usage.notes)])
