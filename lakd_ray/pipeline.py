"""The driver of all stages. A single fold is a grid with one cell: both take the same path.

Each stage skips what is already done and valid.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from lakd_ray import storage
from lakd_ray.cluster import (
    ResourceRequest,
    all_nodes,
    check_resources,
    cluster_address,
    evaluation_request,
    experiment_session,
    local_nodes,
    missing_resources,
    preparation_request,
    resolve_device,
    watched_room,
    with_local_device,
)
from lakd_ray.config import Experiment
from lakd_ray.data import prepare
from lakd_ray.errors import ConfigError, TrainingError
from lakd_ray.inference import evaluate
from lakd_ray.launch.driver import TrainStage, stage_tasks, train_tasks
from lakd_ray.launch.event_log import format_duration
from lakd_ray.launch.plan import format_plan, log_settings_selection, plan_grid
from lakd_ray.launch.run_log import RunLog
from lakd_ray.launch.tracking import check_tracker_packages
from lakd_ray.runs.graph import RunGraph, build_run_graph
from lakd_ray.serve.smoke_test import smoke_test_endpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """The stages of an experiment over some of its cells."""

    config: Experiment
    """The experiment."""
    graphs: tuple[RunGraph, ...]
    """The runs of each cell."""
    run_log: RunLog | None = None
    """If given, a run that fails is logged and skipped, and the others are trained; if None, it ends the stage."""

    def prepare(self) -> None:
        """Import the corpora and write shards and manifest."""
        with _room(self.config, "prepare", preparation_request(self.config)):
            prepare.prepare_corpora(self.config)

    def train(self, stage: TrainStage) -> None:
        """Train the runs of a stage in all cells."""
        tasks = stage_tasks(self.graphs, stage)
        if self.run_log:
            train_tasks(tasks, name="grid", keep_going=True, on_event=self.run_log.on_event)
            self.run_log.reconcile()
            return
        if stage != "teachers":
            log_settings_selection(self.config)
        for run in (run for graph in self.graphs for run in graph.students if stage != "teachers"):
            if run.stage == "teachers":
                logger.info(f"{stage}: {run.paradigm} {run.setup} is trained exactly as {run.id}, which is used")
        train_tasks(tasks, name=stage)

    def tune(self) -> None:
        """Search the settings of a student on dev."""
        from lakd_ray.tune import run as search  # Ray Tune and Optuna take seconds to load

        search.run_search(self.config)

    def evaluate(self) -> None:
        """Write the predictions of all models on the test utterances; the cells of a fold share their passes."""
        failed = self.run_log.failed if self.run_log else ()
        with _room(self.config, "evaluate", evaluation_request(self.config)):
            for fold in dict.fromkeys(graph.config.fold for graph in self.graphs):
                evaluate.run(*(graph for graph in self.graphs if graph.config.fold == fold), exclude=failed)

    def report(self) -> str:
        """Write the report, log its tables and notes, and return the location of report.html."""
        from lakd_ray import report  # matplotlib takes seconds to load

        location = report.write_report(self.config, self.graphs, sorted(self.run_log.failed) if self.run_log else ())
        logger.info(report.format_summary(report.read_report(self.config)))
        logger.info(f"report: {location}")
        return location

    def serve(self) -> None:
        """Serve the best student, query it with a few test clips, and stop the endpoint."""
        for graph in self.graphs:
            smoke_test_endpoint(graph)


STAGES: dict[str, Callable[[Pipeline], object]] = {
    "prepare": Pipeline.prepare,
    "teachers": lambda pipeline: pipeline.train("teachers"),
    "distill": lambda pipeline: pipeline.train("distill"),
    "tune": Pipeline.tune,
    "evaluate": Pipeline.evaluate,
    "report": Pipeline.report,
    "serve": Pipeline.serve,
}
_READING_STAGES = ("report", "serve")  # they may run beside training
GRID_STAGES = ("prepare", "teachers", "distill", "evaluate", "report")
_STAGES_ON_WORKERS = ("teachers", "distill", "tune", "evaluate")  # on the device of `train.gpu`


@contextmanager
def _room(config: Experiment, stage: str, request: ResourceRequest) -> Iterator[None]:
    """Reject a cluster that can never hold a stage, and report waits for room; Ray Data would wait silently."""
    check_resources(config, [stage], all_nodes())
    with watched_room(f"{stage}: {request.description}", request.bundle, config.cluster):
        yield


def run_stage(config: Experiment, stage: str) -> None:
    """Run one stage of an experiment in a Ray session, which is opened if this process has none.

    Stages whose output is complete and valid are skipped.

    Args:
        config: the experiment; the stage runs for its fold, seed and settings.
        stage: `prepare`, `teachers`, `distill`, `tune`, `evaluate`, `report` or `serve` (a smoke test of the endpoint).

    Raises:
        ConfigError: there is no such stage.
        LeaseError: a different process works on the experiment; `report` and `serve` may run beside it.
        LakdError: the stage fails.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}, expected one of {', '.join(STAGES)}")
    lease = nullcontext() if stage in _READING_STAGES else storage.hold(config.folder)
    with storage.explain_full_disk("write", config.storage), lease, experiment_session(config):
        if stage in _STAGES_ON_WORKERS:
            config = resolve_device(config)
        STAGES[stage](Pipeline(config, (build_run_graph(config),)))


def run_pipeline(config: Experiment) -> None:
    """Run the stages that the experiment names in `stages`, in a Ray session, which is opened if this process has none.

    Raises:
        LakdError: a stage fails.
    """
    with (
        storage.explain_full_disk("write", config.storage),
        storage.hold(config.folder),
        experiment_session(config),
    ):
        run_stages(config)


def run_stages(config: Experiment) -> None:
    """Run the experiment's stages in order for its own fold, seed and settings.

    Raises:
        ConfigError: the package of a configured tracker is not installed; checked first, because training starts only
            after hours of preparation.
    """
    check_tracker_packages(config)
    config = resolve_device(config)
    started = time.perf_counter()
    pipeline = Pipeline(config, (build_run_graph(config),))
    steps = _build_steps(config)
    for number, (name, step) in enumerate(steps, start=1):
        elapsed = format_duration(time.perf_counter() - started)
        logger.info(f"\n== {name} ({number}/{len(steps)}, {elapsed} so far)")
        step(pipeline)
    logger.info(f"\nall done in {format_duration(time.perf_counter() - started)}; results in {config.folder}")


def run_grid(config: Experiment, *, dry_run: bool = False, throughput: float | None = None) -> str | None:
    """Prepare the data, then train, evaluate and report every fold, seed and variant of the experiment's grid.

    A run that several cells need is trained once. A run that fails is skipped, and the others are trained. The same
    call after an interruption resumes.

    Args:
        config: the experiment.
        dry_run: log the plan and its cost only.
        throughput: audio-seconds per second of one worker group, for the cost; None: measured from finished runs.

    Returns:
        The location of report.html; None for a dry run.

    Raises:
        ConfigError: the package of a configured tracker is not installed.
        TrainingError: runs failed; all that is possible without them is done.
    """
    if dry_run:
        if cluster_address(config.cluster) is None:
            config = with_local_device(config)
            for sentence in missing_resources(config, GRID_STAGES, local_nodes(config)):
                logger.warning(sentence)
    else:
        check_tracker_packages(config)
        config = resolve_device(config)
        Pipeline(config, ()).prepare()
    plan = plan_grid(config)
    logger.info(format_plan(plan, throughput))
    if dry_run:
        return None
    run_log = RunLog(plan)
    pipeline = Pipeline(config, plan.graphs, run_log)
    pipeline.train("train")
    pipeline.evaluate()
    location = pipeline.report()
    if run_log.failed:
        raise TrainingError(
            f"{len(run_log.failed)} of {len(plan.tasks)} runs failed; the report does not include them. The same "
            "command tries them again:\n  " + "\n  ".join(f"{run}: {reason}" for run, reason in run_log.failed.items())
        )
    return location


def _build_steps(config: Experiment) -> list[tuple[str, Callable[[Pipeline], object]]]:
    """Return the stages in order; teachers and students in sequence share their worker groups."""
    steps: list[tuple[str, Callable[[Pipeline], object]]] = [(name, STAGES[name]) for name in config.stages]
    for index in range(len(config.stages) - 1):
        if config.stages[index : index + 2] == ("teachers", "distill"):
            steps[index : index + 2] = [("teachers and distill", lambda pipeline: pipeline.train("train"))]
    return steps
