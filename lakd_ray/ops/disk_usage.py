"""Disk usage of an experiment by stage: what it has written, and what it will need.

Estimates err on the high side: weights in fp32, every search trial trained to the end. Corpora are estimated from their
listing and a few recordings, models by transformers without allocating them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lakd_ray import storage
from lakd_ray.config import Experiment, Stage
from lakd_ray.ops import size_estimates
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph

_STAGE_METADATA_BYTES = 1_000_000  # records, metrics and figures of a stage


@dataclass(frozen=True)
class StageUsage:
    """Bytes of one stage's folder, now and later."""

    stage: str
    contents: str
    final: int
    """When the stage is finished."""
    peak: int
    """At most, while it runs."""
    current: int
    """Now."""


@dataclass(frozen=True)
class DiskUsage:
    """Bytes of an experiment; `corpora` and `temporary` are not part of any stage."""

    folder: str
    stages: tuple[StageUsage, ...]
    corpora: int
    """Bytes of the corpora themselves."""
    temporary: int
    """In the temporary folder of each worker while it saves."""
    free: int | None
    """On the disk of the storage; None for a bucket."""
    notes: tuple[str, ...]

    @property
    def final(self) -> int:
        """Bytes when all stages are finished."""
        return sum(part.final for part in self.stages)

    @property
    def current(self) -> int:
        """Bytes of all stages now."""
        return sum(part.current for part in self.stages)

    @property
    def required(self) -> int:
        """Free bytes needed for the remaining work, at most; stages run one after the other."""
        remaining = sum(max(0, part.final - part.current) for part in self.stages)
        overhead = max((part.peak - part.final for part in self.stages), default=0)
        return remaining + max(0, overhead)

    def to_json(self) -> dict[str, Any]:
        """Return the usage as plain JSON types."""
        totals = {"final": self.final, "current": self.current, "required": self.required}
        return asdict(self) | {"notes": list(self.notes), "total": totals}


def estimate_usage(config: Experiment) -> DiskUsage:
    """Measure what exists and estimate the rest.

    Raises:
        StorageError: the storage or a corpus cannot be listed.
        ConfigError: transformers rejects an architecture.
    """
    notes: list[str] = []
    current_sizes = _current_sizes(config)
    corpus_size = size_estimates.estimate_corpus_size(config, notes)
    teacher, student = (
        size_estimates.estimate_checkpoint_size(recipe.model, config, notes)
        for recipe in (config.teacher, config.student)
    )
    graph = build_run_graph(config)
    predictions = _estimate_predictions(graph, corpus_size.utterances)
    stages: dict[Stage, tuple[str, int, int]] = {
        "prepare": _estimate_prepare(corpus_size),
        "teachers": _estimate_teachers(graph, teacher, corpus_size.utterances),
        "distill": _estimate_runs(config, student, graph.trained_students),
        "tune": _estimate_search(config, student),
        "evaluate": ("predictions", predictions, predictions),
        "report": ("report.json, report.html", 2 * _STAGE_METADATA_BYTES, 2 * _STAGE_METADATA_BYTES),
    }
    parts = []
    for stage, (contents, final, peak) in stages.items():
        if config.base_experiment is not None and stage in ("prepare", "teachers"):
            notes.append(f"{stage}: the experiment uses those of {config.base_experiment}")
        elif stage in config.stages or current_sizes.get(stage):
            parts.append(StageUsage(stage, contents, final, peak, current_sizes.pop(stage, 0)))
    if other := sum(current_sizes.values()):
        parts.append(StageUsage("other", ", ".join(sorted(current_sizes)), other, other, other))
    return DiskUsage(
        folder=config.folder,
        stages=tuple(parts),
        corpora=corpus_size.corpora,
        temporary=max(weights.checkpoint + weights.resume for weights in (teacher, student)),
        free=None if storage.is_remote(config.storage) else storage.free_bytes(config.storage),
        notes=tuple(dict.fromkeys(notes)),
    )


def _current_sizes(config: Experiment) -> dict[str, int]:
    """Return the bytes of every folder directly below the experiment's folder."""
    sizes: dict[str, int] = {}
    for info in storage.list_files(config.folder):
        stage = info.location[len(config.folder) + 1 :].partition("/")[0]
        sizes[stage] = sizes.get(stage, 0) + info.size
    return sizes


def _estimate_prepare(corpus_size: size_estimates.CorpusSize) -> tuple[str, int, int]:
    size = corpus_size.shards + corpus_size.features
    return "FLAC shards and manifest" + (", cached features" if corpus_size.features else ""), size, size


def _estimate_teachers(
    graph: RunGraph, checkpoint_size: size_estimates.CheckpointSize, utterances: int
) -> tuple[str, int, int]:
    contents, final, peak = _estimate_runs(graph.config, checkpoint_size, (*graph.teachers, *graph.cross_fitted))
    teachers = {name for run in graph.students for name in run.teachers}
    logits = len(teachers) * utterances * size_estimates.logits_row_bytes(graph.config)
    return f"{contents}, logits of {len(teachers)} teachers", final + logits, peak + logits


def _estimate_runs(
    config: Experiment, checkpoint_size: size_estimates.CheckpointSize, runs: Sequence[Run]
) -> tuple[str, int, int]:
    """Estimate training runs; a finished run keeps its best checkpoints, a running one briefly has one more of each."""
    final = len(runs) * (config.train.keep_checkpoints * checkpoint_size.checkpoint + _STAGE_METADATA_BYTES)
    concurrent = min(len(runs), config.train.parallel_runs)
    states = config.train.keep_resume_states + 1
    return (
        f"{len(runs)} runs",
        final,
        final + concurrent * (checkpoint_size.checkpoint + states * checkpoint_size.resume),
    )


def _estimate_search(config: Experiment, checkpoint_size: size_estimates.CheckpointSize) -> tuple[str, int, int]:
    """Estimate the search; a trial that is stopped early keeps its resume states and the best checkpoint of each."""
    trials, concurrent = config.tune.trials, min(config.tune.trials, config.tune.max_concurrent_trials)
    states = config.train.keep_resume_states
    final = trials * (
        (config.train.keep_checkpoints + states - 1) * checkpoint_size.checkpoint
        + states * checkpoint_size.resume
        + _STAGE_METADATA_BYTES
    )
    peak = final + concurrent * (checkpoint_size.checkpoint + checkpoint_size.resume)
    return f"{trials} trials", final, peak


def _estimate_predictions(graph: RunGraph, utterances: int) -> int:
    return len(graph.evaluated) * utterances * size_estimates.logits_row_bytes(graph.config)


def format_usage(usage: DiskUsage) -> str:
    """Format the usage as a human-readable table."""
    size = storage.format_bytes
    rows = [("stage", "final", "peak", "now", "")]
    rows += [
        (part.stage, size(part.final), size(part.peak), size(part.current), part.contents) for part in usage.stages
    ]
    peak = usage.current + usage.required
    rows.append(("total", size(usage.final), size(peak), size(usage.current), usage.folder))
    lines = [f"{row[0]:<10}{row[1]:>12}{row[2]:>12}{row[3]:>12}  {row[4]}".rstrip() for row in rows]
    lines.append(f"corpora: {size(usage.corpora)}")
    lines.append(f"temporary folder of each worker: up to {size(usage.temporary)} while it saves")
    if usage.free is not None:
        verdict = "enough" if usage.free >= usage.required else "NOT ENOUGH, free some space or change `storage`"
        lines.append(
            f"free on this disk: {size(usage.free)}, still required: at most {size(usage.required)}: {verdict}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in usage.notes)])
