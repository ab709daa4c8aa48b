"""One trial: a student with some of the search's settings, trained in a process or by a worker group of its own."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

from ray import tune

from lakd_ray import storage
from lakd_ray.config import Experiment, TrackingConfig
from lakd_ray.errors import ConfigError
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.layout import trial_id
from lakd_ray.runs.state import RunState
from lakd_ray.tune.study import Settings, build_trial_config

ERROR_FILE = "error.json"
_LATENCY_CLIP_SECONDS, _LATENCY_REPEATS = 5, 7


def find_student(graph: RunGraph) -> Run:
    """The multilingual student that is searched for, for the search's number of epochs.

    Raises:
        ConfigError: the experiment has none.
    """
    tuning = graph.config.tune
    wanted = tuning.paradigm
    found = [run for run in graph.students if run.paradigm == wanted and run.setup == "multilingual"]
    if not found:
        raise ConfigError(
            f"tune searches the multilingual {wanted} student: add it to distill.paradigms and distill.setups"
        )
    (student,) = found
    if tuning.epochs is None:
        return student
    optim = student.recipe.optim.model_copy(update={"epochs": tuning.epochs})
    return student.model_copy(update={"recipe": student.recipe.model_copy(update={"optim": optim})})


def build_trial_run(graph: RunGraph, number: int, seed: int | None = None) -> Run:
    """The run of a trial, whose settings the configuration has already; with another seed if one is given."""
    changes = {
        "id": trial_id(number, seed),
        "stage": "tune",
        "seed": graph.config.seed if seed is None else seed,
    }
    return find_student(graph).model_copy(update=changes)


def train_trial(trial: dict[str, Any], *, experiment: dict[str, Any]) -> None:
    """Ray Tune's function: trains the student and reports after each epoch.

    Args:
        trial: `number` and `settings`.
        experiment: the configuration, as plain data.
    """
    base = Experiment.model_validate(experiment)
    place = storage.join(base.stage_folder("tune"), trial_id(trial["number"]))
    try:
        train_student(base, trial["number"], trial["settings"], report=tune.report)
    except Exception as error:
        storage.write_json(storage.join(place, ERROR_FILE), {"cause": f"{type(error).__name__}: {error}"})
        raise


def train_student(
    base: Experiment,
    number: int,
    settings: Settings,
    *,
    seed: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
) -> float:
    """Train a trial's student to its end, from where it was interrupted; returns its objective.

    Args:
        base: the experiment that is searched in.
        seed: another seed for the student.
        report: given `{epoch, objective, cost, audio_seconds, loss}` after each epoch, those of an earlier attempt
            first; `objective` is the highest so far.
    """
    config = build_trial_config(base, settings)
    graph = build_run_graph(config)
    run = build_trial_run(graph, number, seed)
    best, told, cost = 0.0, set[int](), measure_cost(config, run)

    def tell(line: dict[str, Any]) -> None:
        nonlocal best
        best = max(best, compute_objective(line, config))
        told.add(line["epoch"])
        known = {key: line[key] for key in ("epoch", "loss", "audio_seconds")}
        report({**known, "objective": best, "cost": cost})

    folder = run.folder(config)
    for line in RunState.read(folder).metrics:
        tell(line)
    train = _train_in_worker_group if config.tune.workers_per_trial > 1 else _train_in_process
    train(graph, run, tell)
    for line in RunState.read(folder).metrics:
        if line["epoch"] not in told:
            tell(line)
    return best


def compute_objective(epoch_metrics: dict[str, Any], config: Experiment) -> float:
    """What an epoch's line is worth."""
    recalls = list(epoch_metrics["dev_recall"].values())
    return float(min(recalls) if config.tune.objective == "worst" else epoch_metrics["dev_UR"])


def measure_cost(config: Experiment, run: Run) -> float | None:
    """The second objective: parameters of the student, or milliseconds for a clip; None if there is none."""
    if config.tune.second_objective is None:
        return None
    import torch

    from lakd_ray.models import build_model

    model = build_model(run.recipe.model, run.emotions, seed=0, languages=config.languages).eval()
    if config.tune.second_objective == "size":
        return float(sum(weight.numel() for weight in model.parameters()))
    wave_1T, length_1 = torch.zeros(1, _LATENCY_CLIP_SECONDS * 16_000), torch.tensor([_LATENCY_CLIP_SECONDS * 16_000])
    spent = []
    with torch.inference_mode():
        for _ in range(_LATENCY_REPEATS):
            started = time.perf_counter()
            model(wave_1T, length_1)
            spent.append(1000 * (time.perf_counter() - started))
    return median(spent)


def _train_in_process(graph: RunGraph, run: Run, on_epoch: Callable[[dict[str, Any]], None]) -> None:
    """Train in this process, and tell of every epoch."""
    import torch  # only trials need it

    from lakd_ray.data import manifest as manifests
    from lakd_ray.inference.feature_cache import get_or_compute_features
    from lakd_ray.launch import teacher_logits
    from lakd_ray.train.data_loader import RankDataLoader
    from lakd_ray.train.trainer import train_run

    config = graph.config
    torch.set_num_threads(config.train.cpus_per_worker)
    _init_single_process_group()
    manifest = manifests.load_manifest(config)
    job = teacher_logits.resolve_inputs(graph, manifest, run)
    logits = torch.from_numpy(teacher_logits.load_logits(graph, manifest, run)) if run.teachers else None
    feed = RankDataLoader(
        run,
        config,
        manifest,
        logits,
        rank=0,
        world_size=1,
        feature_source=get_or_compute_features(config, manifest, run.recipe.model),
    )
    train_run(feed, run.folder(config), job.fingerprint, list(job.teacher_provenance), on_epoch)


def _train_in_worker_group(graph: RunGraph, run: Run, on_epoch: Callable[[dict[str, Any]], None]) -> None:
    """Train by a worker group of Ray Train, and tell of every epoch here.

    Ray Tune stops a trial by ending the thread that reports to it and then this process, and with it the group that
    the process has started. So this thread tells, and another waits for the group.
    """
    from lakd_ray.launch.driver import train_tasks
    from lakd_ray.launch.run_queue import TrainingEvent
    from lakd_ray.launch.worker import TrainingTask

    config = graph.config
    workers = config.train.model_copy(update={"workers": config.tune.workers_per_trial, "parallel_runs": 1})
    config = config.model_copy(update={"train": workers, "tracking": TrackingConfig(tensorboard=False)})
    news: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()

    def hear(event: TrainingEvent) -> None:
        if event["event"] == "epoch":
            news.put(event["line"])

    def fit() -> None:
        try:
            train_tasks([TrainingTask(config, run)], name=run.id.replace("/", "-"), on_event=hear)
            news.put(None)
        except BaseException as error:  # noqa: BLE001 -- raised by the thread that reports
            news.put(error)

    threading.Thread(target=fit, name="group", daemon=True).start()
    while (line := news.get()) is not None:
        if isinstance(line, BaseException):
            raise line
        on_epoch(line)


def _init_single_process_group() -> None:
    """A process group of one, which the engine's collectives need; a reused process has it already."""
    import torch.distributed as dist

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        store = Path(tempfile.mkdtemp(prefix="lakd-"), "store")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
