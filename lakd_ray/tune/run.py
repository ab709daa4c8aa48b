"""The tune stage: searches settings of a student by its recall on dev."""

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from ray import tune

from lakd_ray import records, storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Brought, Experiment, dump, with_settings
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.errors import ConfigError, TrainingError
from lakd_ray.infer.batch import logits_here
from lakd_ray.infer.features import cached
from lakd_ray.resources import refuse_shortage
from lakd_ray.runs import cross_fitted_runs, teacher_runs
from lakd_ray.train import teaching
from lakd_ray.train.run import train_tasks
from lakd_ray.train.worker import Task
from lakd_ray.tune import outcome, page
from lakd_ray.tune.drive import OBJECTIVE, Stops, Suggestions, Table, settings_text
from lakd_ray.tune.study import Study, Trial, check_grid, experiment_of, paper_settings
from lakd_ray.tune.trial import student_of, train_student, train_trial

BEST, TRIALS = "best.yaml", "trials.json"
_NOT_SEARCHED = ("trials", "concurrent", "workers_per_trial", "gpus_per_trial", "confirm")


def run(config: Experiment) -> str:
    """Search, write every trial and the best configuration; returns the folder. Goes on where it was interrupted.

    Raises:
        ConfigError: the experiment has no such student, or settings of the space do not go together.
        StageError: the folder was made by another configuration, or the teachers are not trained.
        ResourceError: there is no room for the trials.
        TrainingError: no trial finished an epoch.
    """
    folder = config.stage_folder("tune")
    student = student_of(config)
    check_grid(config)
    manifest = manifests.load(config)
    job = teaching.job(config, manifest, student)
    # the number of trials is no part of it: more of them are added to a finished search
    searched = {key: value for key, value in dump(config.tune).items() if key not in _NOT_SEARCHED}
    made_by = {"stage": "tune", "tune": searched, "student": job.made_by}
    finished = records.is_done(folder, made_by)
    study = Study(config, folder)
    try:
        if finished and not study.left and _confirmed(config, folder):
            print(f"tune: already done, {folder}")
            return folder
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
        refuse_shortage(config, ["tune"], have)
        records.start(folder, made_by)
        _prepare(config)
        started = time.perf_counter()
        _search(config, study, folder)
        trials = study.trials()
        if not outcome.ranked(trials):
            causes = "; ".join(str(trial.cause) for trial in trials[:3])
            raise TrainingError(f"tune: no trial finished an epoch: {causes or 'none was started'}")
        confirmed = _confirm(config, trials)
        _write(config, folder, trials, confirmed, _notes(config, manifest, trials, confirmed))
    finally:
        study.close()
    records.finish(folder, made_by, [TRIALS, BEST, page.PAGE])
    print(f"tune: done in {time.perf_counter() - started:.0f} s -> {storage.join(folder, BEST)}")
    return folder


def _prepare(config: Experiment) -> None:
    """Teachers, logits and features that trials share, made once before them."""
    each = list(_kinds(config))
    runs = [run for kind in each for run in (*teacher_runs(kind), *cross_fitted_runs(kind))]
    tasks = [Task(config, run) for run in {run.id: run for run in runs}.values()]
    if missing := [task for task in tasks if not task.finished]:
        train_tasks(missing, name="teachers for the search")
    share = ray.remote(num_cpus=config.train.cpus_per_worker, num_gpus=int(config.train.gpu), max_retries=2)(_share)
    ray.get(share.remote([dump(kind) for kind in each]))


def _share(kinds: Sequence[dict[str, Any]]) -> None:
    """Make what is missing in one process: questions are many and small, and each process costs seconds to start."""
    for content in kinds:
        config = Experiment.model_validate(content)
        manifest, student = manifests.load(config), student_of(config)
        if student.teachers:
            teaching.store_logits(config, manifest, [student], partial(_ask, config, manifest))
        cached(config, manifest, student.recipe.model)


def _kinds(config: Experiment) -> Iterator[Experiment]:
    """The experiment with each choice of what decides which teachers are asked, and what is frozen."""
    deciding = ("weighting", "cross_fit", "freeze_encoder", "freeze_feature_encoder")
    keys = [key for key in config.tune.space if key.rpartition(".")[2] in deciding]
    for values in itertools.product(*(config.tune.space[key].choices for key in keys)):
        try:
            yield with_settings(config, dict(zip(keys, values, strict=True)), "tune.space")
        except ConfigError:  # a combination that `when` rules out
            continue
    if paper := paper_settings(config):
        yield experiment_of(config, paper)


def _ask(
    config: Experiment, manifest: Manifest, rows: Rows, checkpoints: teaching.Checkpoints
) -> dict[str, teaching.Logits]:
    own = not any(isinstance(place, Brought) for place in checkpoints.values())
    source = cached(config, manifest, config.teacher.model) if own else None
    places, found = logits_here(config, manifest, rows, checkpoints, 0, 1, source)
    return {name: logits_RC[np.argsort(places)] for name, logits_RC in found.items()}


def _resources(config: Experiment) -> dict[str, float]:
    """Of one trial's own process; where a worker group trains for it, that reserves what it needs by itself."""
    if config.tune.workers_per_trial > 1:
        return {"CPU": 0.01}  # Tune wants a trial to reserve something
    gpu = {"GPU": config.tune.gpus_per_trial} if config.train.gpu else {}
    return {"CPU": config.train.cpus_per_worker, **gpu}


def _search(config: Experiment, study: Study, folder: str) -> None:
    """Run the trials that are left."""
    left = study.left
    if not left:
        return
    filesystem, path = storage.resolve(folder)
    suggestions = Suggestions(study, folder)
    tune.Tuner(
        tune.with_resources(tune.with_parameters(train_trial, experiment=dump(config)), _resources(config)),
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            num_samples=left,
            max_concurrent_trials=config.tune.concurrent,
            # a new process costs the seconds of its imports; but its end is what ends a group
            reuse_actors=config.tune.workers_per_trial == 1,
            search_alg=suggestions,
            scheduler=Stops(suggestions),
        ),
        run_config=tune.RunConfig(
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=storage.join(path, "ray"),
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            callbacks=[Table(suggestions, left)],
            verbose=0,
        ),
    ).fit()


def _confirm(config: Experiment, trials: Sequence[Trial]) -> dict[int, list[float]]:
    """Train the best trials and the paper's settings again with other seeds; their objectives by trial."""
    again = config.tune.confirm
    if again is None:
        return {}
    chosen = {trial.number: trial for trial in outcome.ranked(trials)[: again.best]}
    if paper := outcome.paper_trial(config, trials):
        chosen[paper.number] = paper
    resources = _resources(config)
    train = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=2)(_train_again)
    waiting = [(trial, seed) for trial in chosen.values() for seed in again.seeds]
    running: dict[Any, tuple[int, int]] = {}
    found: dict[tuple[int, int], float] = {}
    while waiting or running:
        while waiting and len(running) < config.tune.concurrent:
            trial, seed = waiting.pop(0)
            running[train.remote(dump(config), trial.number, trial.settings, seed)] = trial.number, seed
        (ended,), _ = ray.wait(list(running), num_returns=1)
        number, seed = running.pop(ended)
        found[number, seed] = ray.get(ended)
        print(f"confirm: trial {number} with seed {seed}: objective {found[number, seed]:.3f}", flush=True)
    return {number: [found[number, seed] for seed in again.seeds] for number in chosen}


def _train_again(experiment: dict[str, Any], number: int, settings: dict[str, Any], seed: int) -> float:
    return train_student(Experiment.model_validate(experiment), number, settings, seed=seed)


def _confirmed(config: Experiment, folder: str) -> bool:
    """Whether the trials that were to be run again were."""
    if config.tune.confirm is None:
        return True
    entries = storage.read_json(storage.join(folder, TRIALS))
    return any(len(entry["confirmed"]) == len(config.tune.confirm.seeds) for entry in entries)


def _notes(config: Experiment, manifest: Manifest, trials: Sequence[Trial], confirmed: outcome.Confirmed) -> list[str]:
    best = outcome.ranked(trials, confirmed)[0]
    rows = manifest.rows("train", student_of(config).languages)
    seconds = float(manifest.samples_N[rows].sum()) / SAMPLE_RATE
    ended = {state: sum(trial.state == state for trial in trials) for state in ("complete", "stopped", "failed")}
    counted = ", ".join(f"{count} {state}" for state, count in ended.items() if count)
    notes = [
        f"Best of {len(trials)} trials ({counted}): #{best.number}, objective {best.objective or 0:.4f} on dev after "
        f"{best.epochs} epochs, with {settings_text(best.settings)}.",
        outcome.compared(config, trials, confirmed),
        outcome.cost(config, trials, confirmed, seconds),
    ]
    if config.tune.against:
        shown = "; ".join(f"#{one.number} {one.objective or 0:.3f} at {one.cost:.4g}" for one in outcome.front(trials))
        notes.append(f"Not beaten in both recall and {config.tune.against}: {shown}.")
    return notes


def _write(
    config: Experiment, folder: str, trials: Sequence[Trial], confirmed: outcome.Confirmed, notes: Sequence[str]
) -> None:
    best = outcome.ranked(trials, confirmed)
    others = [trial for trial in trials if trial not in best]
    storage.write_json(storage.join(folder, TRIALS), [outcome.plain(each, confirmed) for each in [*best, *others]])
    storage.write_bytes(storage.join(folder, BEST), outcome.best_file(config, best[0].settings, notes).encode())
    page.write(config, notes, confirmed)
    for note in notes:
        print(f"tune: {note}")
