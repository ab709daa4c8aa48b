"""Training stages: hand runs to Ray Train worker groups, watch them, and come back when all are done.

Starting a worker group costs tens of seconds (processes and imports), so one group trains several runs one after the
other; independent runs also go side by side when `train.side_by_side` allows.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lakd_ray import records, storage
from lakd_ray.config import Experiment, dump
from lakd_ray.data import manifest as manifests
from lakd_ray.errors import LakdError, ResourceError, StorageError, TrainingError
from lakd_ray.runs import Run, student_runs, teacher_runs
from lakd_ray.train import teaching
from lakd_ray.train.state import State
from lakd_ray.train.watch import watching


def teachers(config: Experiment) -> list[str]:
    """The teachers stage: one fine-tuned model per language, and a multilingual one if paradigm kd needs it.

    Returns:
        The runs' folders.
    """
    return _stage(config, teacher_runs(config), "teachers")


def distill(config: Experiment) -> list[str]:
    """The distill stage: every student of the experiment, teacher logits computed once and stored.

    Returns:
        The runs' folders.

    Raises:
        StageError: a teacher is not trained.
        HygieneError: a teacher has seen what the student will be judged on.
    """
    return _stage(config, student_runs(config), "distill")


def teachers_and_students(config: Experiment) -> list[str]:
    """Both stages by the same worker groups, which saves starting them twice."""
    return _stage(config, [*teacher_runs(config), *student_runs(config)], "train")


def _stage(config: Experiment, runs: Sequence[Run], name: str) -> list[str]:
    known = {run.id for run in teacher_runs(config)}
    for run in student_runs(config) if name != "teachers" else ():
        if run.id in known:
            print(f"{name}: {run.paradigm} {run.setup} is trained exactly as {run.id}, which is used")
    runs = list({run.id: run for run in runs if name != "distill" or run.id not in known}.values())
    train_runs(config, runs, name=name)
    return [run.folder(config) for run in runs]


def train_runs(config: Experiment, runs: Sequence[Run], *, name: str) -> None:
    """Train those of the runs that are not done; teachers stand before the students that need them.

    Raises:
        StageError: a run's folder was made by another configuration, or a teacher is not trained.
        ResourceError: the cluster cannot hold one worker group.
        TrainingError: a run failed and its retries are used up.
    """
    manifest = manifests.load(config)
    todo: list[Run] = []
    for run in runs:
        waits = {other.id for other in todo} & set(run.teachers)
        if waits or not _done(config, teaching.job(config, manifest, run)):
            todo.append(run)
    if len(todo) < len(runs):
        print(f"{name}: already done, {', '.join(run.id for run in runs if run not in todo)}")
    if not todo:
        return
    _check_resources(config)
    groups = min(config.train.side_by_side, len(todo))
    with watching([run.folder(config) for run in todo]):
        if groups == 1:
            _fit(config, todo, name)
            return
        fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
        planned = {run.id for run in todo}
        first = [run for run in todo if not planned & set(run.teachers)]
        for level in (first, [run for run in todo if run not in first]):
            shares = [level[group::groups] for group in range(groups)]
            ray.get([fit.remote(config, share, f"{name}-{group}") for group, share in enumerate(shares) if share])


def _done(config: Experiment, job: teaching.Job) -> bool:
    return records.is_done(job.run.folder(config), job.made_by)


def _fit(config: Experiment, runs: Sequence[Run], name: str) -> None:
    """Train some runs in turn, by one worker group after another if groups are lost.

    Ray Train would try again by itself, but it would do so after any error: a mistake of the user's would be made anew,
    at a minute each, before it is told.
    """
    failures, reached = 0, _progress(config, runs)
    while True:
        try:
            _trainer(config, runs, name).fit()
            return
        except ray.train.TrainingFailedError as error:
            causes = _causes(error)
            for cause in causes.values():
                if isinstance(cause, LakdError) and not isinstance(cause, StorageError):
                    raise cause from error
            told = "; ".join(f"worker {rank}: {cause}" for rank, cause in causes.items()) or str(error)
            before, reached = reached, _progress(config, runs)
            failures = 1 if reached != before else failures + 1
            if failures > config.train.max_failures:
                raise TrainingError(f"training failed {failures} times without getting on: {told}") from error
            print(f"{name}: a worker was lost, going on from the last saved state ({told[:200]})", flush=True)


def _causes(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    """What each failed worker raised, or how it was lost."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}


def _progress(config: Experiment, runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Epochs and batches that each run has finished and saved."""
    states = [State.read(run.folder(config)) for run in runs]
    return [(state.epoch, state.cursor) for state in states]


def _trainer(config: Experiment, runs: Sequence[Run], name: str) -> TorchTrainer:
    train = config.train
    filesystem, path = storage.resolve(storage.join(config.folder, "ray"))
    limits: Any = {"max_failures": 0, "controller_failure_limit": 0}
    return TorchTrainer(
        worker,
        train_loop_config={"experiment": dump(config), "runs": [dump(run) for run in runs]},
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


def worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker does: train the runs one after the other."""
    import torch  # only workers need these

    from lakd_ray.infer.batch import read_logits
    from lakd_ray.train.feed import Feed
    from lakd_ray.train.loop import train
    from lakd_ray.train.together import Group

    experiment = Experiment.model_validate(config["experiment"])
    torch.set_num_threads(experiment.train.cpus_per_worker)
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    manifest = manifests.load(experiment)
    runs = [Run.model_validate(entry) for entry in config["runs"]]
    for index, run in enumerate(runs):
        job = group.agreed(partial(teaching.job, experiment, manifest, run))
        if group.agreed(partial(_done, experiment, job)):
            continue
        logits = None
        if run.teachers:
            compute = partial(group.logits, experiment, manifest)
            teaching.store_logits(experiment, manifest, _taught(runs[index:]), compute, group.agreed)
            group.wait()
            array_NKC = read_logits(manifest, teaching.logits_folder(experiment), run.teachers, len(run.emotions))
            logits = torch.from_numpy(array_NKC)
        source = group.features(experiment, manifest, run.recipe.model)
        feed = Feed(run, experiment, manifest, logits, group.rank, group.world, source)
        train(feed, run.folder(experiment), job.made_by, list(job.parents), _report)


def _taught(left: Sequence[Run]) -> list[Run]:
    """Those of the runs that are left whose teachers are trained; they share one pass over the audio."""
    waiting = {run.id for run in left}
    return [run for run in left if not waiting & set(run.teachers)]


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
