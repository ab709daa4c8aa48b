"""All stages in order. Each skips what is already done and valid, and says so."""

import time
from collections.abc import Callable
from typing import Any

from lakd_ray.audio import decode_audio, encode_flac, sources, to_int16
from lakd_ray.cluster import cluster_address, experiment_session
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.errors import ConfigError
from lakd_ray.inference import evaluate
from lakd_ray.launch import driver as training
from lakd_ray.launch.progress import format_duration
from lakd_ray.launch.tracking import manager
from lakd_ray.runs.graph import RunGraph, build_run_graph
from lakd_ray.runs.state import find_best_checkpoint, select_best_run
from lakd_ray.serve.client import Client


def run_stages(config: Experiment) -> None:
    """Run the experiment's stages.

    Raises:
        ConfigError: a configured tracker is not installed; hours of preparation later would be late to say so.
    """
    manager.check_tracker_packages(config)
    started = time.perf_counter()
    steps = _build_steps(config)
    for number, (name, step) in enumerate(steps, start=1):
        print(
            f"\n== {name} ({number}/{len(steps)}, {format_duration(time.perf_counter() - started)} so far)", flush=True
        )
        step(config)
    print(f"\nall done in {format_duration(time.perf_counter() - started)}; results in {config.folder}")


def _build_steps(config: Experiment) -> list[tuple[str, Callable[[Experiment], object]]]:
    """The stages in order; teachers and students that follow each other share their worker groups."""
    steps: list[tuple[str, Callable[[Experiment], object]]] = [(name, STAGES[name]) for name in config.stages]
    for index in range(len(config.stages) - 1):
        if config.stages[index : index + 2] == ("teachers", "distill"):
            steps[index : index + 2] = [
                ("teachers and distill", lambda config: training.train_teachers_and_students(build_run_graph(config)))
            ]
    return steps


def run_tune(config: Experiment) -> None:
    """The tune stage."""
    from lakd_ray.tune import run as search  # Ray Tune and Optuna take seconds to load

    search.run_search(config)


def run_report(config: Experiment) -> None:
    """The report stage; prints its headline table."""
    from lakd_ray import report as reports  # matplotlib takes seconds to load

    location = reports.write_report(config, [build_run_graph(config)])
    print(reports.format_summary(reports.read_report(config)))
    print(f"report: {location}")


def best_student_checkpoint(graph: RunGraph) -> str:
    """Checkpoint of the student with the best recall on dev.

    Raises:
        StageError: no student is trained.
    """
    return find_best_checkpoint(select_best_run(graph.students, graph.config), graph.config)


def smoke_test_endpoint(config: Experiment) -> None:
    """Serve the best student, ask it about held-out clips over HTTP, print answers beside the truth, and stop."""
    from lakd_ray.serve import deploy as serving  # Ray Serve takes seconds to load

    checkpoint = best_student_checkpoint(build_run_graph(config))
    url = serving.start(config, checkpoint)
    try:
        print(f"serve: {checkpoint}\n  at {url}/v1/emotion")
        with Client(url) as endpoint:
            right, asked = _query_test_clips(config, endpoint)
        print(f"serve: {right} of {asked} held-out clips right; endpoint stopped (keep one up with `lakd serve`)")
    finally:
        serving.stop(before_cluster_shutdown=cluster_address(config) is None)


def _query_test_clips(config: Experiment, endpoint: Client) -> tuple[int, int]:
    """A test recording of every language and emotion, as it came from the corpus."""
    manifest = manifests.load_manifest(config)
    right = asked = 0
    for language in config.languages:
        clips = manifest.table.take(manifest.rows("test", [language])).to_pylist()
        drawn = sorted(clips, key=lambda clip: str(clip["audio_sha256"]))
        first = {clip["emotion"]: clip for clip in reversed(drawn)}
        for clip in (first[emotion] for emotion in config.emotions if emotion in first):
            answer = endpoint.predict(_read_clip(clip), language)
            right, asked = right + (answer.emotion == clip["emotion"]), asked + 1
            share = answer.probabilities[answer.emotion]
            print(f"  {clip['utterance']:<34} truth {clip['emotion']:<10} answer {answer.emotion:<10} ({share:.2f})")
    return right, asked


def _read_clip(clip: dict[str, Any]) -> bytes:
    """A clip as it came from the corpus; of a longer recording, the part that is the clip."""
    content = sources.read_source(clip["source"])
    if clip["start"] is None and clip["end"] is None:
        return content
    wave_T = decode_audio(content, source_name=clip["source"], start=clip["start"], end=clip["end"])
    return encode_flac(to_int16(wave_T))


STAGES: dict[str, Callable[[Experiment], object]] = {
    "prepare": prepare.run,
    "teachers": lambda config: training.train_teachers(build_run_graph(config)),
    "distill": lambda config: training.train_students(build_run_graph(config)),
    "tune": run_tune,
    "evaluate": lambda config: evaluate.run(build_run_graph(config)),
    "report": run_report,
    "serve": smoke_test_endpoint,
}


def run_stage(config: Experiment, stage: str) -> None:
    """Run one stage of an experiment in a Ray session, which is opened if this process has none.

    Stages whose output is complete and valid are skipped.

    Args:
        stage: `prepare`, `teachers`, `distill`, `tune`, `evaluate`, `report` or `serve` (a smoke test of the endpoint).

    Raises:
        ConfigError: there is no such stage.
        LakdError: the stage fails.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}, expected one of {', '.join(STAGES)}")
    with experiment_session(config):
        STAGES[stage](config)


def run_pipeline(config: Experiment) -> None:
    """Run the stages that the experiment names in `stages`, in a Ray session, which is opened if there is none.

    Raises:
        LakdError: a stage fails.
    """
    with experiment_session(config):
        run_stages(config)
