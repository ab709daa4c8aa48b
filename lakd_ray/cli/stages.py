"""Commands that run the stages of an experiment on Ray."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand, RayCommand
from lakd_ray.cli.options import ExperimentArgument, OverridesOption
from lakd_ray.config import Experiment, load_config

logger = logging.getLogger(__name__)

ThroughputOption = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Audio seconds per second of one run, for the cost estimate. Measured from finished runs by default.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    stage = app.command(cls=RayCommand, rich_help_panel=options.STAGES_PANEL)
    for function in (prepare, train_teachers, distill, evaluate, report, serve, pipeline, run_grid):
        stage(function)
    app.command("reproduce", cls=RayCommand, hidden=True, help="Same as run-grid.")(run_grid)
    app.command(cls=RayCommand, rich_help_panel=options.SEARCH_PANEL)(tune)
    app.command(cls=LakdCommand, rich_help_panel=options.SEARCH_PANEL)(tune_report)


def prepare(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Import the corpora into a validated manifest and 16 kHz FLAC in Parquet shards."""
    _run_stage("prepare", load_config(experiment, overrides or ()))


def train_teachers(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Fine-tune one teacher per language, and the multilingual teacher if a student needs it."""
    _run_stage("teachers", load_config(experiment, overrides or ()), ("teachers",))


def distill(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Train the students by fine-tuning (ft) and distillation from one teacher (kd) or several (mtkd)."""
    _run_stage("distill", load_config(experiment, overrides or ()), ("distill",))


def evaluate(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Predict every test utterance with every model."""
    _run_stage("evaluate", load_config(experiment, overrides or ()))


def report(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Write report.json and report.html from the predictions."""
    _run_stage("report", load_config(experiment, overrides or ()))


def serve(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Serve the best student over HTTP until Ctrl-C."""
    from lakd_ray.cluster import experiment_session  # Ray takes seconds to load
    from lakd_ray.serve.auth import resolve_keys

    config = load_config(experiment, overrides or ())
    resolve_keys(config.serve)  # reports missing or invalid keys before Ray starts
    with experiment_session(config):
        _serve_until_interrupted(config)


def pipeline(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Run all stages of the experiment in order.

    Finished stages are skipped, and an interrupted run resumes.
    """
    config = load_config(experiment, overrides or ())
    _refuse_if_in_use(config)
    from lakd_ray.pipeline import run_stages  # Ray takes seconds to load

    _run_checked(config, config.stages, run_stages)


def run_grid(
    experiment: ExperimentArgument,
    overrides: OverridesOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and run nothing.")] = False,
    throughput: ThroughputOption = None,
) -> None:
    """Run the complete grid of folds, seeds and variants, and report it in one table.

    Runs that several cells share are trained once; an interrupted grid resumes.
    """
    config = load_config(experiment, overrides or ())
    if not dry_run:
        _refuse_if_in_use(config)
    from lakd_ray.pipeline import GRID_STAGES, run_grid  # Ray takes seconds to load

    if dry_run:
        run_grid(config, dry_run=True, throughput=throughput)
    else:
        _run_checked(config, GRID_STAGES, lambda config: run_grid(config, throughput=throughput))


def tune(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Tune a student's hyperparameters on the dev split."""
    _run_stage("tune", load_config(experiment, overrides or ()), ("tune",))


def tune_report(experiment: ExperimentArgument, overrides: OverridesOption = None) -> None:
    """Write the HTML report of a search, whether it is finished or still running."""
    config = load_config(experiment, overrides or ())
    from lakd_ray.tune import html_report  # Ray and matplotlib take seconds to load

    logger.info("search: %s", html_report.write_html_report(config))


def _run_stage(stage: str, config: Experiment, preflight_stages: Sequence[str] = ()) -> None:
    """Run one stage; stages that train run the preflight checks first."""
    if stage != "report":
        _refuse_if_in_use(config)
    from lakd_ray.pipeline import run_stage  # Ray takes seconds to load

    if preflight_stages:
        _run_checked(config, preflight_stages, lambda config: run_stage(config, stage))
    else:
        run_stage(config, stage)


def _refuse_if_in_use(config: Experiment) -> None:
    """Refuse a second command on the experiment before Ray loads; the lease itself is taken after the preflight."""
    from lakd_ray import storage  # pyarrow takes a moment to load

    storage.refuse_if_held(config.folder)


def _run_checked(config: Experiment, stages: Sequence[str], run: Callable[[Experiment], object]) -> None:
    from lakd_ray import storage
    from lakd_ray.ops import doctor  # Ray takes seconds to load

    with doctor.checked_session(config, stages), storage.hold(config.folder):
        run(config)


def _serve_until_interrupted(config: Experiment) -> None:
    from lakd_ray.cluster import cluster_address
    from lakd_ray.runs import build_run_graph
    from lakd_ray.runs.state import find_best_student_checkpoint
    from lakd_ray.serve import deploy

    checkpoint = find_best_student_checkpoint(build_run_graph(config))
    url = deploy.start(config, checkpoint)
    logger.info(
        "serving %s\n  POST %s/v1/emotion, documentation at %s/docs; Ctrl-C or SIGTERM stops it", checkpoint, url, url
    )
    try:
        while True:
            time.sleep(3600)
    finally:
        logger.info("stopping: the requests in progress get their responses, new ones 503")
        deploy.drain_and_stop(config.serve.drain_s, before_cluster_shutdown=cluster_address(config.cluster) is None)
