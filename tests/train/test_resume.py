"""Test saving, resuming and stopping with one rank and the torch engine, also with corrupted states."""

import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load
from support import fake_data as noise
from support import tiny_models as tiny
from support.loop_scenario import read_in_process

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import StorageError, TrainingError
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.train import checkpointing, monitoring, trainer
from lakd_ray.train import data_loader as feeds
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines.base import Engine
from lakd_ray.train.trainer import TrainingStopped

TRAIN, DEV, STEPS = 24, 8, 12
FINGERPRINT = {"made": "by a test"}


class Killed(Exception):  # noqa: N818 -- not an error of the code under test
    """Stand for the end of the process."""


@pytest.fixture(scope="module", autouse=True)
def single_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create a process group of one rank."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    checkpointing._process_group.cache_clear()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("noise")
    noise.write(folder, TRAIN + DEV)
    return noise.manifest(folder, TRAIN, DEV)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "stream_batches", read_in_process)


class Run:
    """A run in a folder, which can be trained repeatedly."""

    def __init__(
        self, manifest: Manifest, folder: Path | str, *, optim: dict[str, Any] | None = None, **train: Any
    ) -> None:
        model = {"config": tiny.ARCHITECTURE | {"mask_time_length": 2}, "freeze_feature_encoder": False}
        recipe = {"model": model, "optim": {"epochs": 3, "lr": 0.003} | (optim or {})}
        content = {
            "name": "t", "storage": str(folder), "languages": ["en"], "teacher": recipe, "student": recipe,
            "audio": {"row_group_utterances": noise.ROW_GROUP}, "corpora": [{"name": "c", "root": str(folder)}],
            "batch": {"max_padded_seconds": 2, "max_utterances": 2, "shuffle_row_groups": 2},
            "train": {"engine": "torch", **train},
        }  # fmt: skip
        config = Experiment.model_validate(content)
        self.folder, self.messages, self.reports = str(folder), list[str](), list[dict[str, Any]]()
        self._loader = RankDataLoader(build_run_graph(config).teachers[0], config, manifest, None, 0, 1)

    def train(self, **kwargs: Any) -> RunState:
        trainer.train_run(
            self._loader, self.folder, FINGERPRINT, [], self.reports.append, log=self.messages.append, **kwargs
        )  # fmt: skip
        return self.state

    def kill(self, after: int, **kwargs: Any) -> RunState:
        """Train until the run is killed at an optimizer step."""
        steps = 0

        def counting_step(engine: Engine) -> None:
            nonlocal steps
            steps += 1
            if steps > after:
                raise Killed
            step(engine)

        step = Engine.step
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Engine, "step", counting_step)
            self.train(**kwargs)
        return self.state

    @property
    def state(self) -> RunState:
        return RunState.read(self.folder)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load(storage.read_bytes(f"{self.folder}/{self.state.best_checkpoint_name}/model.safetensors"))

    @property
    def folders(self) -> set[str]:
        return set(storage.list_folders(self.folder)) if storage.exists(self.folder) else set()


@pytest.fixture(scope="module")
def uninterrupted(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train a run without an interruption."""
    run = Run(manifest, tmp_path_factory.mktemp("uninterrupted"), optim={"ema_decay": 0.9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream_batches", read_in_process)
        run.train()
    return run


def assert_same_result(actual: Run, expected: Run) -> None:
    metrics = [
        [(epoch["loss"], epoch["dev_UR"], epoch["dev_ce"]) for epoch in run.state.metrics] for run in (actual, expected)
    ]
    assert metrics[0] == metrics[1]
    for name, value in actual.weights.items():
        assert torch.equal(value, expected.weights[name]), name


def corrupt(folder: str) -> None:
    """Change one byte of the largest file."""
    file = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_corrupted_state_is_detected_and_the_previous_one_is_used(
    manifest: Manifest, tmp_path: Path, uninterrupted: Run
):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9}, checkpoint_steps=4)
    state = run.kill(after=STEPS + 9)
    assert (state.latest.epochs_done, state.latest.batches_done, state.previous[0].batches_done) == (1, 8, 4)
    corrupt(f"{run.folder}/{state.latest.resume_folder}")
    run.train()
    (message,) = run.messages
    assert f"{state.latest.resume_folder} is incomplete or damaged" in message
    assert "resuming from the previous state: epoch 1, batch 4" in message
    assert_same_result(run, uninterrupted)


def test_states_without_checksums_are_skipped_and_the_run_starts_from_the_beginning(
    manifest: Manifest, tmp_path: Path, uninterrupted: Run
):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    state = run.kill(after=2 * STEPS + 2)
    for position in (state.latest, *state.previous):
        storage.delete(f"{run.folder}/{position.resume_folder}/SEAL.json")
    run.train()
    assert len(run.messages) == 2 and "the beginning" in run.messages[1]
    assert_same_result(run, uninterrupted)


def test_a_pending_preemption_saves_the_state_at_once(manifest: Manifest, tmp_path: Path, uninterrupted: Run):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    state = run.kill(after=11, read_notice=lambda: "preemption")
    assert (state.latest.epochs_done, state.latest.batches_done) == (0, 1), "not the state of the step of the check"
    run.train()
    assert_same_result(run, uninterrupted)


@pytest.mark.parametrize("check", [1, 2, 3])
def test_a_stopped_run_saves_its_state_and_resumes(
    manifest: Manifest, tmp_path: Path, uninterrupted: Run, monkeypatch: pytest.MonkeyPatch, check: int
):
    """The checks are after the first steps, of which one may be the last of an epoch."""
    monkeypatch.setattr(monitoring, "_NOTICE_CHECK_S", 0.0)
    checks = itertools.count(1)
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    with pytest.raises(TrainingStopped, match=r"epoch 1, step \d"):
        run.train(read_notice=lambda: "stop" if next(checks) == check else "")
    assert (run.state.latest.epochs_done, run.state.latest.batches_done) == (0, check)
    run.train()
    assert_same_result(run, uninterrupted)


def test_a_run_that_is_stopped_after_an_epoch_resumes(manifest: Manifest, tmp_path: Path, uninterrupted: Run):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    with pytest.raises(TrainingStopped, match="the end of epoch 1"):
        run.train(read_notice=lambda: "stop" if run.reports else "")
    assert (run.state.latest.epochs_done, run.state.latest.batches_done) == (1, 0)
    run.train()
    assert_same_result(run, uninterrupted)


def test_a_run_in_a_bucket_resumes(manifest: Manifest, uninterrupted: Run, s3: str):
    run = Run(manifest, f"{s3}/resumed", optim={"ema_decay": 0.9}, checkpoint_steps=4)
    state = run.kill(after=STEPS + 5)
    assert (state.latest.epochs_done, state.latest.batches_done) == (1, 4)
    run.train()
    assert_same_result(run, uninterrupted)
    assert run.folders == {run.state.best_checkpoint_name}


def test_the_number_of_retained_states_and_checkpoints(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", keep_checkpoints=2, keep_resume_states=3)
    state = run.kill(after=3 * STEPS - 1)
    assert len([name for name in run.folders if name.startswith("resume-")]) == 2  # the third one is not saved yet
    assert set(state.best_checkpoint_names(2)) <= run.folders
    state = run.train()
    assert run.folders == set(state.best_checkpoint_names(2)) and len(run.folders) == 2
    assert (state.latest, state.previous) == (ResumePoint(3), ())


def test_a_run_stops_early_when_dev_does_not_improve(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e-30, "epochs": 9, "early_stopping_patience": 2})
    state = run.train()
    assert (len(state.metrics), state.best_checkpoint_name) == (3, "best-0001")
    assert run.train() == state and len(run.reports) == 3, "a finished run is trained again"


def test_the_patience_survives_an_interruption(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e-30, "epochs": 9, "early_stopping_patience": 2})
    run.kill(after=2 * STEPS + 3)
    assert len(run.train().metrics) == 3


def test_a_diverged_loss_raises_with_a_diagnosis_and_saves_nothing(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e9, "max_grad_norm": 1e9, "warmup_ratio": 0.0})
    with pytest.raises(
        TrainingError, match=r"epoch 1 the loss is .* on utt.*Learning rate .*e\+08, last gradient norm.* have diverged"
    ):
        run.train()
    assert not run.folders


def test_a_batch_with_nan_is_listed_in_the_error(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collate = RankDataLoader.collate

    def collate_with_nan(self: RankDataLoader, raw_batch: Any, **kwargs: Any) -> Any:
        batch = collate(self, raw_batch, **kwargs)
        if 3 in raw_batch.rows:
            batch.inputs[0, :] = float("nan")
        return batch

    monkeypatch.setattr(RankDataLoader, "collate", collate_with_nan)
    run = Run(manifest, tmp_path / "run")
    utterance = manifest.table["utterance"][3].as_py()
    with pytest.raises(TrainingError, match=rf"{utterance}.*weights are normal, so the cause is this batch"):
        run.train()


def test_a_failed_upload_ends_the_run(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: Path, location: str) -> Any:
        raise StorageError("no space left")

    monkeypatch.setattr(checkpointing.storage, "upload_folder", fail)
    run = Run(manifest, tmp_path / "run")
    with pytest.raises(StorageError, match="rank 0 could not save its state: no space left"):
        run.train()
    assert run.state == RunState()


def test_the_metrics_of_an_epoch_include_its_cost(uninterrupted: Run):
    metrics = uninterrupted.reports[-1]
    phases = sum(metrics[f"seconds_{phase}"] for phase in ("data", "forward", "backward", "optimizer"))
    assert 0.5 * metrics["seconds"] < phases <= metrics["seconds"]
    assert metrics["grad_norm"] > 0 and metrics["memory_mb"] > 100


def test_the_gradient_norm_of_a_skipped_step_is_not_in_the_metrics(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """JSON has neither NaN nor infinity."""
    build_engine = trainer.engines.build_engine

    def build(*args: Any, **kwargs: Any) -> Engine:
        engine = build_engine(*args, **kwargs)
        monkeypatch.setattr(type(engine), "gradient_norm", float("inf"))
        return engine

    monkeypatch.setattr(trainer.engines, "build_engine", build)
    run = Run(manifest, tmp_path / "run", optim={"epochs": 1})
    run.train()
    assert run.reports[-1]["grad_norm"] is None


def test_nothing_of_a_run_stays_in_memory(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    references: list[weakref.ref[Any]] = []
    build_engine = trainer.engines.build_engine

    def build_and_record(model: Any, *args: Any, **kwargs: Any) -> Engine:
        engine = build_engine(model, *args, **kwargs)
        references.extend(weakref.ref(part) for part in (model, engine, *model.parameters()))
        return engine

    monkeypatch.setattr(trainer.engines, "build_engine", build_and_record)
    Run(manifest, tmp_path / "run", optim={"epochs": 1, "ema_decay": 0.9}).train()
    assert len(references) > 10 and not any(reference() is not None for reference in references)
