"""The tune stage: searches temperature, lam and tau of the mtkd student by its recall on dev."""

import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import optuna
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from lakd_ray import records, storage
from lakd_ray.config import DistillLoss, Experiment, dump
from lakd_ray.config import Search as Range
from lakd_ray.data import manifest as manifests
from lakd_ray.data.manifest import Manifest, Rows
from lakd_ray.data.stream import Source
from lakd_ray.errors import ConfigError, TrainingError
from lakd_ray.infer.batch import Asked, logits
from lakd_ray.infer.features import cached
from lakd_ray.runs import Run, student_runs
from lakd_ray.train import teaching
from lakd_ray.tune.trial import PAPER, SEARCHED, loss_of, train_trial
from lakd_ray.tune.watch import Table

BEST, TRIALS = "best.yaml", "trials.json"
METRIC = "best_dev_UR"


def run(config: Experiment) -> str:
    """Search, write every trial and the best configuration; returns the folder. Goes on where it was interrupted.

    Raises:
        ConfigError: the experiment has no multilingual mtkd student.
        StageError: the folder was made by another configuration, or the teachers are not trained.
        TrainingError: no trial finished.
    """
    folder = config.stage_folder("tune")
    student = _student(config)
    manifest = manifests.load(config)
    job = teaching.job(config, manifest, student)
    made_by = {"stage": "tune", "tune": dump(config.tune), "student": job.made_by}
    if records.is_done(folder, made_by):
        print(f"tune: already done, {folder}")
        return folder
    records.start(folder, made_by)
    trained = [student, student.model_copy(update={"loss": PAPER})]
    teaching.store_logits(config, manifest, trained, partial(_ask, config, manifest))
    started = time.perf_counter()
    tuner = _tuner(config, job, cached(config, manifest, student.recipe.model), folder)
    trials = _outcomes(tuner.fit())
    if not trials or trials[0][METRIC] is None:
        errors = "; ".join(str(trial["error"]) for trial in trials[:3])
        raise TrainingError(f"tune: no trial finished an epoch: {errors or 'none was started'}")
    best = trials[0]
    storage.write_json(storage.join(folder, TRIALS), trials)
    storage.write_bytes(storage.join(folder, BEST), best_file(config, best, trials).encode())
    records.finish(folder, made_by, [TRIALS, BEST])
    print(
        f"tune: {len(trials)} trials in {time.perf_counter() - started:.0f} s; best dev UR {best[METRIC]:.3f} with "
        + ", ".join(f"{name} {best['settings'][name]:.3g}" for name in SEARCHED)
        + f" -> {storage.join(folder, BEST)}"
    )
    return folder


def _ask(
    config: Experiment, manifest: Manifest, rows: Rows, checkpoints: teaching.Checkpoints
) -> dict[str, teaching.Logits]:
    asked = {name: Asked(location) for name, location in checkpoints.items()}
    answers = logits(config, manifest, rows, asked, title="teacher logits")
    return {name: found.logits_RC for name, found in answers.items()}


def _student(config: Experiment) -> Run:
    """The student that trials train: as the experiment's, for the search's number of epochs."""
    found = [run for run in student_runs(config) if run.paradigm == "mtkd" and run.setup == "multilingual"]
    if not found:
        raise ConfigError("tune searches the multilingual mtkd student: add it to distill.paradigms and distill.setups")
    (student,) = found
    if config.tune.epochs is None:
        return student
    optim = student.recipe.optim.model_copy(update={"epochs": config.tune.epochs})
    return student.model_copy(update={"recipe": student.recipe.model_copy(update={"optim": optim})})


def _tuner(config: Experiment, job: teaching.Job, source: Source | None, folder: str) -> tune.Tuner:
    """A new search, or the interrupted one."""
    filesystem, path = storage.resolve(folder)
    name = "ray"
    cpus = config.train.cpus_per_worker
    trainable = tune.with_resources(
        tune.with_parameters(train_trial, experiment=dump(config), job=job, source=source),
        {"CPU": cpus, **({"GPU": 1} if config.train.gpu else {})},
    )
    restorable = tune.Tuner.can_restore(storage.join(path, name), storage_filesystem=filesystem)
    if restorable:
        return tune.Tuner.restore(
            storage.join(path, name),
            trainable,
            storage_filesystem=filesystem,
            resume_unfinished=True,
            restart_errored=True,
        )
    epochs = job.run.recipe.optim.epochs
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=config.tune.trials,
            max_concurrent_trials=config.tune.concurrent,
            reuse_actors=True,  # a new process costs the seconds of its imports
            search_alg=OptunaSearch(
                space={name: _distribution(getattr(config.tune, name)) for name in SEARCHED},
                metric=METRIC,
                mode="max",
                points_to_evaluate=[{name: getattr(PAPER, name) for name in SEARCHED}],
                seed=config.seed,
            ),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=epochs,
                grace_period=min(config.tune.grace, epochs),
                reduction_factor=config.tune.reduction,
            ),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            callbacks=[Table(config.tune.trials)],
            verbose=0,
        ),
    )


def _distribution(range_: Range) -> optuna.distributions.FloatDistribution:
    return optuna.distributions.FloatDistribution(range_.low, range_.high, log=range_.log)


def _outcomes(results: tune.ResultGrid) -> list[dict[str, Any]]:
    """Every trial, the best first."""
    trials = []
    for result in (results[index] for index in range(len(results))):
        metrics = result.metrics or {}
        trials.append(
            {
                "trial": metrics.get("trial_id"),
                "settings": result.config,
                "epochs": metrics.get("epoch", 0),
                METRIC: metrics.get(METRIC),
                "error": None if result.error is None else str(result.error),
            }
        )
    return sorted(trials, key=lambda trial: -(trial[METRIC] if trial[METRIC] is not None else -1.0))


def best_file(config: Experiment, best: dict[str, Any], trials: list[dict[str, Any]]) -> str:
    """An experiment file that distills the winner on the full budget, with this experiment's data and teachers."""
    loss: DistillLoss = loss_of(best["settings"], config.distill.mtkd)
    content = dump(config) | {"name": f"{config.name}-best", "base": config.base or config.name}
    content["distill"] |= {"mtkd": dump(loss), "paradigms": ["mtkd"], "setups": ["multilingual"]}
    content["stages"] = ["prepare", "teachers", "distill", "evaluate", "report"]
    paper = next(
        (trial for trial in trials if loss_of(trial["settings"], config.distill.mtkd) == PAPER and trial[METRIC]), None
    )
    compared = f"; the paper's settings reached {paper[METRIC]:.4f}" if paper else ""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return (
        f"# Found by the tune stage of {config.name} on {today}: the best of {len(trials)} trials,\n"
        f"# UR {best[METRIC]:.4f} on dev after {best['epochs']} epochs{compared}. One seed: luck is not excluded.\n"
        + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    )
