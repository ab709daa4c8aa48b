"""Training stages: hand runs to Ray Train worker groups, watch them, and come back when all are done.

Starting a worker group costs tens of seconds (processes and imports), so one group trains several runs one after the
other; independent runs also go side by side when `train.side_by_side` allows.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lakd_ray import records, storage
from lakd_ray.config import Experiment, dump
from lakd_ray.data import manifest as manifests
from lakd_ray.errors import ResourceError, TrainingError
from lakd_ray.infer.batch import stored_logits
from lakd_ray.provenance import Provenance
from lakd_ray.runs import Run, student_runs, teacher_runs
from lakd_ray.train import state as states
from lakd_ray.train.watch import watching


def teachers(config: Experiment) -> list[str]:
    """The teachers stage: one fine-tuned model per language, and a multilingual one if paradigm kd needs it.

    Returns:
        The runs' folders.
    """
    runs = teacher_runs(config)
    train_runs(config, runs, stage="teachers")
    return [run.folder(config) for run in runs]


def distill(config: Experiment) -> list[str]:
    """The distill stage: every student of the experiment, teacher logits computed once and stored.

    Returns:
        The runs' folders.

    Raises:
        StageError: a teacher is not trained.
        HygieneError: a teacher has seen what the student will be judged on.
    """
    runs = student_runs(config)
    for run in runs:
        if run.stage != "distill":
            print(f"distill: {run.paradigm} {run.setup} is trained exactly as {run.id}, which is used")
    train_runs(config, [run for run in runs if run.stage == "distill"], stage="distill")
    return [run.folder(config) for run in runs]


def train_runs(config: Experiment, runs: Sequence[Run], *, stage: str) -> None:
    """Train those of the runs that are not done.

    Raises:
        StageError: a run's folder was made by another configuration, or a teacher is not trained.
        ResourceError: the cluster cannot hold one worker group.
        TrainingError: a run failed and its retries are used up.
    """
    jobs = [job for job in prepare_jobs(config, runs) if not _done(config, job)]
    if not jobs:
        print(f"{stage}: already done, {', '.join(run.id for run in runs) or 'nothing to train'}")
        return
    _check_resources(config)
    groups = min(config.train.side_by_side, len(jobs))
    with watching([job_folder(config, job) for job in jobs]):
        if groups == 1:
            _fit(config, jobs, stage)
        else:
            fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
            ray.get([fit.remote(config, jobs[group::groups], f"{stage}-{group}") for group in range(groups)])


def prepare_jobs(config: Experiment, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What workers need to know of each run, as plain data: the run, what makes it, what its teachers have seen.

    Makes sure that the teachers' logits are stored.
    """
    prepared = records.digest(records.read(config.stage_folder("prepare")) or {})
    names = {name for run in runs for name in run.teachers}
    teachers = {run.id: run for run in teacher_runs(config) if run.id in names}
    digests: dict[str, str] = {}
    seen: dict[str, Provenance] = {}
    if teachers:
        digests, seen = _ask_teachers(config, list(teachers.values()))
    return [
        {
            "run": dump(run),
            "made_by": states.made_by(
                run, config, {"prepare": prepared, **{name: digests[name] for name in run.teachers}}
            ),
            "parents": [seen[name].to_json() for name in run.teachers],
        }
        for run in runs
    ]


def job_folder(config: Experiment, job: dict[str, Any]) -> str:
    """Where a job's run lies."""
    return Run.model_validate(job["run"]).folder(config)


def logits_folder(config: Experiment) -> str:
    """Where teachers' logits are stored."""
    return storage.join(config.stage_folder("teachers"), "logits")


def _ask_teachers(config: Experiment, teachers: list[Run]) -> tuple[dict[str, str], dict[str, Provenance]]:
    """Check the teachers' records against this fold and store their logits on the training rows."""
    from lakd_ray.models.checkpoint import read_card_at  # loads torch, and most calls need it not

    manifest = manifests.load(config)
    checkpoints = {run.id: states.best_checkpoint(run, config) for run in teachers}
    judged = {split: manifest.seen(manifest.rows(split)) for split in ("dev", "test")}
    seen = {}
    for name, location in checkpoints.items():
        seen[name] = read_card_at(location).provenance
        seen[name].check(model=name, dev=judged["dev"], test=judged["test"])
    digests = stored_logits(
        config, manifest, manifest.rows("train"), checkpoints, logits_folder(config), title="teacher logits"
    )
    return digests, seen


def _done(config: Experiment, job: dict[str, Any]) -> bool:
    return records.is_done(job_folder(config, job), job["made_by"])


def _fit(config: Experiment, jobs: list[dict[str, Any]], name: str) -> None:
    """One worker group trains some runs in turn."""
    train = config.train
    filesystem, path = storage.resolve(storage.join(config.folder, "ray"))
    limits: Any = {"max_failures": train.max_failures, "controller_failure_limit": 0}
    trainer = TorchTrainer(
        worker,
        train_loop_config={"experiment": dump(config), "jobs": jobs},
        scaling_config=ScalingConfig(
            num_workers=train.workers,
            use_gpu=train.gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if train.gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo", timeout_s=int(train.timeout_s)),
        run_config=RunConfig(
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(**limits),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {}) or {}
        cause = "; ".join(f"worker {rank}: {failure}" for rank, failure in causes.items()) or str(error)
        raise TrainingError(f"training failed: {cause}") from error


def worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker does: train the jobs one after the other."""
    import torch  # only workers need it

    from lakd_ray.infer.batch import read_logits
    from lakd_ray.train.feed import Feed
    from lakd_ray.train.loop import train

    experiment = Experiment.model_validate(config["experiment"])
    torch.set_num_threads(experiment.train.cpus_per_worker)
    context = ray.train.get_context()
    manifest = manifests.load(experiment)
    for job in config["jobs"]:
        run = Run.model_validate(job["run"])
        logits = None
        if run.teachers:
            logits = torch.from_numpy(read_logits(manifest, logits_folder(experiment), run.teachers, len(run.emotions)))
        feed = Feed(run, experiment, manifest, logits, context.get_world_rank(), context.get_world_size())
        parents = [Provenance.from_json(content) for content in job["parents"]]
        train(feed, run.folder(experiment), job["made_by"], parents, _report)


def _report(line: dict[str, Any]) -> None:
    ray.train.report({key: value for key, value in line.items() if isinstance(value, int | float | str)})


def _check_resources(config: Experiment) -> None:
    """Refuse at once what the cluster could never give; Ray would wait for ever."""
    train = config.train
    groups = train.side_by_side
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # untyped in Ray
    cpus = groups * train.workers * train.cpus_per_worker + 1
    if have.get("CPU", 0) < cpus:
        raise ResourceError(
            f"the cluster has {have.get('CPU', 0):g} CPUs, but {groups} x {train.workers} workers with "
            f"{train.cpus_per_worker} each and one for reading data need {cpus}. Lower train.workers, "
            "train.cpus_per_worker or train.side_by_side, or add nodes."
        )
    if train.gpu and have.get("GPU", 0) < groups * train.workers:
        raise ResourceError(
            f"the cluster has {have.get('GPU', 0):g} GPUs, but {groups} x {train.workers} workers need one each. "
            "Lower train.workers, set train.gpu: false, or add nodes."
        )
