"""Search the settings of a student by its recall on dev: the tune stage."""

import itertools
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import tune

from lakd_ray import cluster, storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Experiment, ExternalTeacherConfig, to_dict, with_settings
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest, RowIndices
from lakd_ray.errors import ConfigError, TrainingError
from lakd_ray.inference.batch import run_rank_inference
from lakd_ray.inference.feature_cache import get_or_compute_features
from lakd_ray.launch import teacher_logits
from lakd_ray.launch.driver import train_tasks
from lakd_ray.launch.run_inputs import resolve_inputs
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs import record
from lakd_ray.runs.graph import RunGraph, build_run_graph
from lakd_ray.tune import html_report, results
from lakd_ray.tune.ray_adapter import (
    OBJECTIVE,
    ProgressCallback,
    StudyScheduler,
    StudySearcher,
    WaitingCallback,
    format_settings,
)
from lakd_ray.tune.study import Study, Trial, build_trial_config, paper_settings, validate_search_space
from lakd_ray.tune.trial import find_student, train_student, train_trial

BEST_CONFIG_FILE, TRIALS_FILE = "best.yaml", "trials.json"
logger = logging.getLogger(__name__)

_FIXED_KEYS = ("trials", "max_concurrent_trials", "workers_per_trial", "reevaluate")


def run_search(config: Experiment) -> str:
    """Search, write all trials and the best configuration, and return the folder. An interrupted search resumes.

    Raises:
        ConfigError: the experiment has no such student, or settings of the space are incompatible.
        StageError: the folder belongs to a different configuration, or the teachers are not trained.
        ResourceError: the cluster cannot hold the trials.
        TrainingError: no trial finished an epoch.
        LeaseError: a different process works on the experiment.
    """
    with storage.hold(config.folder):
        return _run_search(cluster.resolve_device(config))


def _run_search(config: Experiment) -> str:
    folder = config.stage_folder("tune")
    graph = build_run_graph(config)
    student = find_student(graph)
    validate_search_space(config)
    manifest = manifests.load_manifest(config)
    inputs = resolve_inputs(graph, manifest, student)
    # The number of trials is not included: trials can be added to a finished search.
    searched = {key: value for key, value in to_dict(config.tune).items() if key not in _FIXED_KEYS}
    fingerprint = {"stage": "tune", "tune": searched, "student": inputs.fingerprint}
    finished = record.is_done(folder, fingerprint)
    study = Study(config, folder)
    try:
        if finished and not study.remaining and _is_reevaluated(config, folder):
            logger.info(f"tune: already done: {folder}")
            return folder
        cluster.check_resources(config, ["tune"], cluster.all_nodes())
        record.mark_started(folder, fingerprint)
        _prepare_shared_inputs(config)
        started = time.perf_counter()
        _run_trials(config, study, folder)
        trials = study.get_trials()
        if not results.rank_trials(trials):
            causes = "; ".join(str(trial.cause) for trial in trials[:3])
            raise TrainingError(f"tune: no trial finished an epoch: {causes or 'no trial was started'}")
        seed_objectives = _reevaluate(config, trials)
        _write_results(
            config, folder, trials, seed_objectives, _summary_notes(graph, manifest, trials, seed_objectives)
        )
    finally:
        study.close()
    record.mark_finished(folder, fingerprint, [TRIALS_FILE, BEST_CONFIG_FILE, html_report.HTML_FILE])
    logger.info(f"tune: done in {time.perf_counter() - started:.0f} s -> {storage.join(folder, BEST_CONFIG_FILE)}")
    return folder


def _prepare_shared_inputs(config: Experiment) -> None:
    """Compute the teachers, logits and features that trials share, once before all trials."""
    variants = list(_input_variants(config))
    graphs = [build_run_graph(variant) for variant in variants]
    teachers = {run.id: run for graph in graphs for run in (*graph.teachers, *graph.cross_fitted)}
    tasks = [TrainingTask(config, run) for run in teachers.values()]
    if missing := [task for task in tasks if not task.is_finished]:
        train_tasks(missing, name="teachers for the search")
    compute = ray.remote(max_retries=2)(_compute_shared_inputs)
    bundle = _process_bundle(config, 1)
    with cluster.reserved("tune: one process for teacher logits and features", bundle, 1, config.cluster) as options:
        ray.get(compute.options(**options).remote([to_dict(variant) for variant in variants], storage.current_fences()))


def _compute_shared_inputs(experiments: Sequence[dict[str, Any]], fences: Sequence[dict[str, Any]]) -> None:
    """Compute missing logits and features in one process: each process takes seconds to start."""
    storage.join_fences(fences)
    for content in experiments:
        config = Experiment.model_validate(content)
        graph = build_run_graph(config)
        manifest, student = manifests.load_manifest(config), find_student(graph)
        if student.teachers:
            teacher_logits.ensure_logits(graph, manifest, [student], partial(_compute_teacher_logits, config, manifest))
        get_or_compute_features(config, manifest, student.recipe.model)


def _input_variants(config: Experiment) -> Iterator[Experiment]:
    """Yield the experiment with each choice of the settings that determine teacher queries and cached features."""
    relevant = ("weighting", "cross_fit", "freeze_encoder", "freeze_feature_encoder")
    keys = [key for key in config.tune.space if key.rpartition(".")[2] in relevant]
    for values in itertools.product(*(config.tune.space[key].choices for key in keys)):
        try:
            yield with_settings(config, dict(zip(keys, values, strict=True)), "tune.space")
        except ConfigError:  # a combination that `conditions` rules out
            continue
    if paper := paper_settings(config):
        yield build_trial_config(config, paper)


def _compute_teacher_logits(
    config: Experiment, manifest: Manifest, rows: RowIndices, checkpoints: teacher_logits.TeacherCheckpoints
) -> dict[str, teacher_logits.Logits]:
    has_external = any(isinstance(checkpoint, ExternalTeacherConfig) for checkpoint in checkpoints.values())
    source = None if has_external else get_or_compute_features(config, manifest, config.teacher.model)
    indices, logits = run_rank_inference(config, manifest, rows, checkpoints, 0, 1, source)
    return {name: logits_RC[np.argsort(indices)] for name, logits_RC in logits.items()}


def _process_bundle(config: Experiment, processes: int) -> cluster.Bundle:
    """Return the reservation of one of several processes that train or compute at the same time, with their readers."""
    return cluster.Bundle(config.train.reserved_cpus(processes), config.train.reserved_gpus)


def _trial_bundle(config: Experiment, trials: int) -> cluster.Bundle:
    """Return the reservation of a trial's process; a worker group reserves its own resources."""
    if config.tune.workers_per_trial > 1:
        return cluster.Bundle(0.01)  # Ray Tune requires a reservation
    return _process_bundle(config, trials)


def _run_trials(config: Experiment, study: Study, folder: str) -> None:
    """Run the remaining trials of the study."""
    num_trials = study.remaining
    if not num_trials:
        return
    filesystem, path = storage.resolve_filesystem(folder)
    searcher = StudySearcher(study, folder)
    concurrent = cluster.max_concurrent_trials(config)
    bundle = _trial_bundle(config, concurrent)
    room = f"tune: one trial with {bundle}"
    cluster.wait_for_room(room, bundle, 1, config.cluster)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train_trial, experiment=to_dict(config), fences=storage.current_fences()),
            bundle.to_dict(),
        ),
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            num_samples=num_trials,
            max_concurrent_trials=concurrent,
            # a new process takes seconds to start, but only its end stops a worker group
            reuse_actors=config.tune.workers_per_trial == 1,
            search_alg=searcher,
            scheduler=StudyScheduler(searcher),
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=storage.join(path, "ray"),
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            callbacks=[ProgressCallback(searcher, num_trials), WaitingCallback(room, config.cluster)],
            verbose=0,
        ),
    )
    with storage.explain_full_disk("write", folder):  # Ray Tune wraps the errors of its callbacks
        tuner.fit()


def _reevaluate(config: Experiment, trials: Sequence[Trial]) -> dict[int, list[float]]:
    """Train the best trials and the paper's settings with other seeds; return their objectives by trial number."""
    reevaluate = config.tune.reevaluate
    if reevaluate is None:
        return {}
    selected = {trial.number: trial for trial in results.rank_trials(trials)[: reevaluate.top_k]}
    if paper := results.find_paper_trial(config, trials):
        selected[paper.number] = paper
    pending = [(trial, seed) for trial in selected.values() for seed in reevaluate.seeds]
    limit = min(cluster.max_concurrent_trials(config), len(pending))
    bundle = _trial_bundle(config, limit)
    limit = max(1, min(limit, cluster.capacity(bundle, cluster.free_nodes())))
    with cluster.reserved(f"reevaluate: {limit} trials with {bundle} each", bundle, limit, config.cluster) as options:
        train = ray.remote(max_retries=2)(_train_with_seed).options(**options)
        running: dict[Any, tuple[int, int]] = {}
        objectives: dict[tuple[int, int], float] = {}
        while pending or running:
            while pending and len(running) < limit:
                trial, seed = pending.pop(0)
                reference = train.remote(storage.current_fences(), to_dict(config), trial.number, trial.settings, seed)
                running[reference] = trial.number, seed
            (ended,), _ = ray.wait(list(running), num_returns=1)
            number, seed = running.pop(ended)
            objectives[number, seed] = ray.get(ended)
            logger.info(f"reevaluate: trial {number} with seed {seed}: objective {objectives[number, seed]:.3f}")
    return {number: [objectives[number, seed] for seed in reevaluate.seeds] for number in selected}


def _train_with_seed(
    fences: Sequence[dict[str, Any]], experiment: dict[str, Any], number: int, settings: dict[str, Any], seed: int
) -> float:
    storage.join_fences(fences)
    return train_student(Experiment.model_validate(experiment), number, settings, seed=seed)


def _is_reevaluated(config: Experiment, folder: str) -> bool:
    """Return whether the selected trials were trained with the other seeds."""
    if config.tune.reevaluate is None:
        return True
    entries = storage.read_json(storage.join(folder, TRIALS_FILE))
    return any(len(entry["seed_objectives"]) == len(config.tune.reevaluate.seeds) for entry in entries)


def _summary_notes(
    graph: RunGraph, manifest: Manifest, trials: Sequence[Trial], seed_objectives: results.SeedObjectives
) -> list[str]:
    config = graph.config
    best = results.rank_trials(trials, seed_objectives)[0]
    rows = manifest.rows("train", find_student(graph).languages)
    seconds = float(manifest.num_samples_N[rows].sum()) / SAMPLE_RATE
    ended = {state: sum(trial.state == state for trial in trials) for state in ("complete", "stopped", "failed")}
    counted = ", ".join(f"{count} {state}" for state, count in ended.items() if count)
    notes = [
        f"Best of {len(trials)} trials ({counted}): #{best.number}, objective {best.objective or 0:.4f} on dev after "
        f"{best.epochs} epochs, with {format_settings(best.settings)}.",
        results.compare_with_paper(config, trials, seed_objectives),
        results.describe_cost(config, trials, seed_objectives, seconds),
    ]
    if config.tune.second_objective:
        shown = "; ".join(
            f"#{trial.number} {trial.objective or 0:.3f} at {trial.cost:.4g}" for trial in results.pareto_front(trials)
        )
        notes.append(f"Pareto front of recall and {config.tune.second_objective}: {shown}.")
    return notes


def _write_results(
    config: Experiment,
    folder: str,
    trials: Sequence[Trial],
    seed_objectives: results.SeedObjectives,
    notes: Sequence[str],
) -> None:
    best = results.rank_trials(trials, seed_objectives)
    others = [trial for trial in trials if trial not in best]
    storage.write_json(
        storage.join(folder, TRIALS_FILE), [results.trial_to_json(trial, seed_objectives) for trial in [*best, *others]]
    )
    storage.write_bytes(
        storage.join(folder, BEST_CONFIG_FILE), results.format_best_config(config, best[0].settings, notes).encode()
    )
    html_report.write_html_report(config, notes, seed_objectives)
    for note in notes:
        logger.info(f"tune: {note}")
