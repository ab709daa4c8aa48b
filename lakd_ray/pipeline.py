"""All stages in order. Each skips what is already done and valid, and says so."""

import time
from collections.abc import Callable
from typing import Any

from lakd_ray import storage
from lakd_ray.audio import decode, encode_flac, to_int16
from lakd_ray.config import Experiment
from lakd_ray.corpora import recordings
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.infer import evaluate
from lakd_ray.runs import student_runs
from lakd_ray.serve.client import Client
from lakd_ray.session import joined
from lakd_ray.train import run as training
from lakd_ray.train import track
from lakd_ray.train.state import State, best_checkpoint
from lakd_ray.train.watch import clock


def run(config: Experiment) -> None:
    """Run the experiment's stages.

    Raises:
        ConfigError: a configured tracker is not installed; hours of preparation later would be late to say so.
    """
    track.check(config)
    started = time.perf_counter()
    steps = _steps(config)
    for number, (name, step) in enumerate(steps, start=1):
        print(f"\n== {name} ({number}/{len(steps)}, {clock(time.perf_counter() - started)} so far)", flush=True)
        step(config)
    print(f"\nall done in {clock(time.perf_counter() - started)}; results in {config.folder}")


def _steps(config: Experiment) -> list[tuple[str, Callable[[Experiment], object]]]:
    """The stages in order; teachers and students that follow each other share their worker groups."""
    steps: list[tuple[str, Callable[[Experiment], object]]] = [(name, STAGES[name]) for name in config.stages]
    for index in range(len(config.stages) - 1):
        if config.stages[index : index + 2] == ("teachers", "distill"):
            steps[index : index + 2] = [("teachers and distill", training.teachers_and_students)]
    return steps


def tune(config: Experiment) -> None:
    """The tune stage."""
    from lakd_ray.tune import run as search  # Ray Tune and Optuna take seconds to load

    search.run(config)


def report(config: Experiment) -> None:
    """The report stage; prints its headline table."""
    from lakd_ray import report as reports  # matplotlib takes seconds to load

    location = reports.run(config)
    content = storage.read_json(storage.join(config.stage_folder("report"), "report.json"))
    print(reports.summary(content["results"]))
    for note in content["notes"]:
        print(f"note: {note}")
    print(f"report: {location}")


def best_student(config: Experiment) -> str:
    """Checkpoint of the student with the best recall on dev.

    Raises:
        StageError: no student is trained.
    """
    students = student_runs(config)
    scores = {run.id: State.read(run.folder(config)).best_score for run in students}
    best = max(students, key=lambda run: scores[run.id])
    return best_checkpoint(best, config)


def ask(config: Experiment) -> None:
    """Serve the best student, ask it about held-out clips over HTTP, print answers beside the truth, and stop."""
    from lakd_ray.serve import run as serving  # Ray Serve takes seconds to load

    checkpoint = best_student(config)
    url = serving.start(config, checkpoint)
    try:
        print(f"serve: {checkpoint}\n  at {url}/v1/emotion")
        with Client(url) as endpoint:
            right, asked = _ask_about_test_clips(config, endpoint)
        print(f"serve: {right} of {asked} held-out clips right; endpoint stopped (keep one up with `lakd serve`)")
    finally:
        serving.stop(cluster_ends=joined(config) is None)


def _ask_about_test_clips(config: Experiment, endpoint: Client) -> tuple[int, int]:
    """A test recording of every language and emotion, as it came from the corpus."""
    manifest = manifests.load(config)
    right = asked = 0
    for language in config.languages:
        clips = manifest.table.take(manifest.rows("test", [language])).to_pylist()
        drawn = sorted(clips, key=lambda clip: str(clip["audio_sha256"]))
        first = {clip["emotion"]: clip for clip in reversed(drawn)}
        for clip in (first[emotion] for emotion in config.emotions if emotion in first):
            answer = endpoint.emotion(_recording(clip), language)
            right, asked = right + (answer.emotion == clip["emotion"]), asked + 1
            share = answer.probabilities[answer.emotion]
            print(f"  {clip['utterance']:<34} truth {clip['emotion']:<10} answer {answer.emotion:<10} ({share:.2f})")
    return right, asked


def _recording(clip: dict[str, Any]) -> bytes:
    """A clip as it came from the corpus; of a longer recording, the part that is the clip."""
    content = recordings.read(clip["source"])
    if clip["start"] is None and clip["end"] is None:
        return content
    wave_T = decode(content, where=clip["source"], start=clip["start"], end=clip["end"])
    return encode_flac(to_int16(wave_T))


STAGES: dict[str, Callable[[Experiment], object]] = {
    "prepare": prepare.run,
    "teachers": training.teachers,
    "distill": training.distill,
    "tune": tune,
    "evaluate": evaluate.run,
    "report": report,
    "serve": ask,
}
