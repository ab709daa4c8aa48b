"""Train the student of one trial, in a single process or with its own worker group."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from statistics import median
from typing import Any

from ray import tune

from lakd_ray import storage
from lakd_ray.config import Experiment, TrackingConfig
from lakd_ray.errors import ConfigError, DiskFullError
from lakd_ray.redaction import redact
from lakd_ray.runs.graph import Run, RunGraph, build_run_graph
from lakd_ray.runs.layout import trial_id
from lakd_ray.runs.state import RunState
from lakd_ray.tune.study import Settings, build_trial_config

ERROR_FILE = "error.json"
_LATENCY_CLIP_SECONDS, _LATENCY_REPEATS = 5, 7


def find_student(graph: RunGraph) -> Run:
    """Return the multilingual student whose settings are searched, with the search's number of epochs.

    Raises:
        ConfigError: the experiment has no such student.
    """
    tuning = graph.config.tune
    paradigm = tuning.paradigm
    students = [run for run in graph.students if run.paradigm == paradigm and run.setup == "multilingual"]
    if not students:
        raise ConfigError(
            f"tune searches the multilingual {paradigm} student: add it to distill.paradigms and distill.setups"
        )
    (student,) = students
    if tuning.epochs is None:
        return student
    optim = student.recipe.optim.model_copy(update={"epochs": tuning.epochs})
    return student.model_copy(update={"recipe": student.recipe.model_copy(update={"optim": optim})})


def build_trial_run(graph: RunGraph, number: int, seed: int | None = None) -> Run:
    """Return the run of a trial; the graph has the trial's settings. `seed` replaces the experiment's seed if given."""
    changes = {
        "id": trial_id(number, seed),
        "stage": "tune",
        "seed": graph.config.seed if seed is None else seed,
    }
    return find_student(graph).model_copy(update=changes)


def train_trial(trial: dict[str, Any], *, experiment: dict[str, Any], fences: Sequence[dict[str, Any]]) -> None:
    """Train the student of a trial and report to Ray Tune after each epoch; called by Ray Tune.

    Args:
        trial: `number` and `settings`.
        experiment: the configuration, as plain data.
        fences: the driver's right to write, see `lakd_ray.storage.join_fences`.
    """
    storage.join_fences(fences)
    base = Experiment.model_validate(experiment)
    folder = storage.join(base.stage_folder("tune"), trial_id(trial["number"]))
    try:
        with storage.explain_full_disk():
            train_student(base, trial["number"], trial["settings"], report=tune.report)
    except DiskFullError:  # the search ends, see `ray_adapter.ProgressCallback`
        raise
    except Exception as error:
        storage.write_json(storage.join(folder, ERROR_FILE), {"cause": redact(f"{type(error).__name__}: {error}")})
        raise


def train_student(
    base: Experiment,
    number: int,
    settings: Settings,
    *,
    seed: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda result: None,
) -> float:
    """Train the student of a trial, resume it if it was interrupted, and return its objective.

    Args:
        base: the experiment of the search.
        number: number of the trial.
        settings: settings of the trial.
        seed: replaces the student's seed if given.
        report: called with `{epoch, objective, cost, audio_seconds, loss}` after each epoch, including those of an
            interrupted attempt; `objective` is the highest so far.
    """
    config = build_trial_config(base, settings)
    graph = build_run_graph(config)
    run = build_trial_run(graph, number, seed)
    best, reported, cost = 0.0, set[int](), measure_cost(config, run)

    def report_epoch(metrics: dict[str, Any]) -> None:
        nonlocal best
        best = max(best, compute_objective(metrics, config))
        reported.add(metrics["epoch"])
        report({**{key: metrics[key] for key in ("epoch", "loss", "audio_seconds")}, "objective": best, "cost": cost})

    folder = run.folder(config)
    for metrics in RunState.read(folder).metrics:
        report_epoch(metrics)
    train = _train_in_worker_group if config.tune.workers_per_trial > 1 else _train_in_process
    train(graph, run, report_epoch)
    for metrics in RunState.read(folder).metrics:
        if metrics["epoch"] not in reported:
            report_epoch(metrics)
    return best


def compute_objective(epoch_metrics: dict[str, Any], config: Experiment) -> float:
    """Return the objective of an epoch: UR on dev, over all languages or of the worst one."""
    recalls = list(epoch_metrics["dev_recall"].values())
    return float(min(recalls) if config.tune.objective == "worst" else epoch_metrics["dev_UR"])


def measure_cost(config: Experiment, run: Run) -> float | None:
    """Return the second objective, which is the number of parameters or milliseconds per clip; None if not set."""
    if config.tune.second_objective is None:
        return None
    import torch

    from lakd_ray.models import build_model

    model = build_model(run.recipe.model, run.emotions, seed=0, languages=config.languages).eval()
    if config.tune.second_objective == "size":
        return float(sum(weight.numel() for weight in model.parameters()))
    wave_1T, length_1 = torch.zeros(1, _LATENCY_CLIP_SECONDS * 16_000), torch.tensor([_LATENCY_CLIP_SECONDS * 16_000])
    durations = []
    with torch.inference_mode():
        for _ in range(_LATENCY_REPEATS):
            started = time.perf_counter()
            model(wave_1T, length_1)
            durations.append(1000 * (time.perf_counter() - started))
    return median(durations)


def _train_in_process(graph: RunGraph, run: Run, on_epoch: Callable[[dict[str, Any]], None]) -> None:
    """Train in this process, and report every epoch."""
    import torch  # only trials need it

    from lakd_ray.data import manifest as manifests
    from lakd_ray.inference.feature_cache import get_or_compute_features
    from lakd_ray.launch import teacher_logits
    from lakd_ray.launch.run_inputs import resolve_inputs
    from lakd_ray.train.data_loader import RankDataLoader
    from lakd_ray.train.trainer import train_run

    config = graph.config
    torch.set_num_threads(config.train.cpus_per_worker)
    _init_single_process_group(config)
    manifest = manifests.load_manifest(config)
    inputs = resolve_inputs(graph, manifest, run)
    logits = torch.from_numpy(teacher_logits.load_logits(graph, manifest, run)) if run.teachers else None
    loader = RankDataLoader(
        run,
        config,
        manifest,
        logits,
        rank=0,
        world_size=1,
        feature_source=get_or_compute_features(config, manifest, run.recipe.model),
    )
    train_run(loader, run.folder(config), inputs.fingerprint, list(inputs.teacher_provenance), on_epoch)


def _train_in_worker_group(graph: RunGraph, run: Run, on_epoch: Callable[[dict[str, Any]], None]) -> None:
    """Train with a worker group of Ray Train, and report every epoch from this thread.

    Ray Tune stops a trial by ending the thread that reports to it and then this process, which ends the worker group
    as well. Therefore this thread reports, and a second thread waits for the group.
    """
    from lakd_ray.launch.driver import train_tasks
    from lakd_ray.launch.run_queue import TrainingEvent
    from lakd_ray.launch.worker import TrainingTask

    config = graph.config
    workers = config.train.model_copy(update={"workers": config.tune.workers_per_trial, "parallel_runs": 1})
    config = config.model_copy(update={"train": workers, "tracking": TrackingConfig(tensorboard=False)})
    queue: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()

    def on_event(event: TrainingEvent) -> None:
        if event["event"] == "epoch":
            queue.put(event["line"])

    def fit() -> None:
        try:
            train_tasks([TrainingTask(config, run)], name=run.id.replace("/", "-"), on_event=on_event)
            queue.put(None)
        except BaseException as error:  # noqa: BLE001 -- raised by the thread that reports
            queue.put(error)

    threading.Thread(target=fit, name="group", daemon=True).start()
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        on_epoch(item)


def _init_single_process_group(config: Experiment) -> None:
    """Create the process group of one rank that the engine's collectives need; a reused process has it already."""
    import torch
    import torch.distributed as dist

    from lakd_ray.devices import process_group_backend, select_device

    if not dist.is_initialized():
        device = select_device(config.train.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
        store = dist.HashStore()  # type: ignore[attr-defined]  # exported, but without a stub
        dist.init_process_group(process_group_backend(device.type), store=store, rank=0, world_size=1)
