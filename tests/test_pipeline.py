"""The complete pipeline as a user runs it: real audio, Ray, DeepSpeed and HTTP, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import tiny_models as tiny

from lakd_ray import storage
from lakd_ray.config import load_config
from lakd_ray.data import manifest as manifests
from lakd_ray.runs.layout import predictions_folder
from lakd_ray.runs.state import RunState

pytestmark = pytest.mark.ray

EXPERIMENT = """
name: tiny
storage: {storage}
languages: [en, fi]
corpora:
  - name: demo
    importer: espeak
    root: "{{storage}}/corpus"
    options: {{speakers: 8, sentences: 2, languages: [en, fi]}}
    split: {{scheme: speaker-folds, folds: 4, dev_speakers: 2}}
audio: {{row_group_utterances: 16}}
teacher: &recipe
  model: &model
    freeze_feature_encoder: false
    config: {network}
  optim: {{epochs: 2, lr: 0.001}}
student:
  <<: *recipe
  model: {{<<: *model, language_aware: {{embedding_size: 8}}}}
distill:
  mtkd: {{weighting: attention, cross_fit: 2}}
  external_teachers: [{{name: theirs, checkpoint: "{storage}/theirs"}}]
train: {{workers: 2}}
tune: {{trials: 2, max_concurrent_trials: 2, epochs: 1, grace_epochs: 1}}
serve: {{port: 0}}
cluster: {{object_store_mb: 200}}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(storage=tmp_path / "out", network=tiny.NETWORK))
    tiny.model().network.save_pretrained(tmp_path / "out" / "theirs")  # an external teacher without provenance
    return file


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home directory of its own, because Ray writes an access token to HOME."""
    home = tmp_path / "home"
    home.mkdir()
    return {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1"}


def lakd(environment: dict[str, str], *arguments: str) -> str:
    """Run the command line to its end and return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "lakd_ray", *arguments],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def gpu_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a machine with one GPU that every process sees, and that fails if it is used."""
    return {
        **environment,
        "PYTHONPATH": str(Path(__file__).parent / "support" / "pretended_gpu"),
        "CUDA_VISIBLE_DEVICES": "99",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@pytest.mark.timeout(900)
def test_pipeline_from_corpus_to_prediction_and_again_beside_an_unused_gpu(
    experiment: Path, gpu_environment: dict[str, str]
) -> None:
    environment = gpu_environment
    printed = lakd(environment, "pipeline", str(experiment))
    assert "training on CPUs: the workers need 2 GPUs, the cluster has 1. To use GPUs, lower train.workers" in printed
    config = load_config(experiment)
    manifest = manifests.load_manifest(config)

    assert len(manifest.table) == 2 * 8 * 2 * 4
    test_rows = manifest.rows("test")
    for run in ("teacher-en", "teacher-fi", "teacher-all", "kd-multilingual", "mtkd-multilingual"):
        table = storage.read_table(f"{predictions_folder(config)}/{run}-f0-s42.parquet")
        assert sorted(table["utterance"].to_pylist()) == sorted(manifest.ids[row] for row in test_rows)
    report = storage.read_json(f"{config.stage_folder('report')}/report.json")
    assert {row["condition"] for row in report["language_conditions"]} == {"given", "identified", "unknown", "wrong"}
    warning = "* started from or distilled from theirs, whose training data is not known"
    assert any(note.startswith(warning) for note in report["notes"])
    results = report["results"]
    assert {row["undisclosed_models"] for row in results if row["paradigm"] == "mtkd"} == {"theirs"}
    assert {(row["paradigm"], row["language"]) for row in results} >= {
        (paradigm, language) for paradigm in ("ft", "kd", "mtkd") for language in ("en", "fi", "all")
    }
    assert all(row["n"] == len(test_rows) for row in results if row["language"] == "all")
    best = load_config(f"{config.stage_folder('tune')}/best.yaml")
    assert best.base_experiment == "tiny"
    assert "of 8 held-out clips right" in printed

    again = lakd(
        environment, "pipeline", str(experiment), "--set", "stages=[prepare, teachers, distill, tune, evaluate]"
    )
    assert again.count("already done") == 4
    assert "already done: teacher-en-f0-s42, teacher-fi-f0-s42, teacher-all-f0-s42, " in again


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.timeout(900)
def test_the_pipeline_shares_a_gpu(experiment: Path, environment: dict[str, str]) -> None:
    """Two runs, two trials and two replicas at a time, each on half of the GPU."""
    shared = [
        "train.workers=1",
        "train.parallel_runs=2",
        "train.gpus_per_worker=0.5",
        "serve.gpus=0.5",
        "serve.replicas=2",
    ]
    printed = lakd(environment, "pipeline", str(experiment), "--set", *shared)
    assert "training on GPUs: the workers need 1" in printed
    assert "of 8 held-out clips right" in printed
    config = load_config(experiment)
    for run in ("teachers/teacher-en-f0-s42", "distill/mtkd-multilingual-f0-s42"):
        (*_, last) = Path(config.folder, run, "metrics.jsonl").read_text().splitlines()
        assert json.loads(last)["device"] == torch.cuda.get_device_name()


@pytest.fixture
def started(experiment: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A running process of the pipeline."""
    with subprocess.Popen(
        [sys.executable, "-m", "lakd_ray", "pipeline", str(experiment)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_pipeline_resumes(
    experiment: Path, environment: dict[str, str], started: "subprocess.Popen[bytes]"
) -> None:
    teachers = Path(load_config(experiment).stage_folder("teachers"))
    deadline = time.monotonic() + 400
    while not (teachers / "teacher-fi-f0-s42" / "state.json").exists():
        assert started.poll() is None, "the pipeline ended before it could be killed"
        assert time.monotonic() < deadline, "the second teacher did not finish an epoch in time"
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait(timeout=30)
    first_record = (teachers / "teacher-en-f0-s42" / "record.json").read_text()

    lakd(environment, "pipeline", str(experiment), "--set", "stages=[prepare, teachers, distill, evaluate, report]")

    assert (teachers / "teacher-en-f0-s42" / "record.json").read_text() == first_record, (
        "a finished teacher was trained again"
    )
    for name in ("teacher-en-f0-s42", "teacher-fi-f0-s42", "teacher-all-f0-s42"):
        lines = (teachers / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
        assert RunState.read(str(teachers / name)).latest.resume_folder is None
