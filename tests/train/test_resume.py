"""One rank and the plain engine: what is saved, when a run ends, and what it goes on from if something is damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load
from support import fake_data as noise
from support import tiny_models as tiny
from support.loop_scenario import _read_here

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data.manifest import Manifest
from lakd_ray.errors import StorageError, TrainingError
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.train import checkpointing, trainer
from lakd_ray.train import data_loader as feeds
from lakd_ray.train.data_loader import RankDataLoader
from lakd_ray.train.engines.base import Engine

TRAIN, DEV, STEPS = 24, 8, 12
MADE = {"made": "by a test"}


class Killed(Exception):  # noqa: N818 -- not an error of the code under test
    """Stands for the end of the process."""


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
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
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "stream_batches", _read_here)


class Run:
    """A run in a folder, which may be trained again and again."""

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
        self.folder, self.told, self.lines = str(folder), list[str](), list[dict[str, Any]]()
        self._feed = RankDataLoader(build_run_graph(config).teachers[0], config, manifest, None, 0, 1)

    def train(self, **more: Any) -> RunState:
        trainer.train_run(
            self._feed, self.folder, MADE, [], self.lines.append, log=self.told.append, **more
        )  # fmt: skip
        return self.state

    def kill(self, after: int, **more: Any) -> RunState:
        """Train, and be killed at an optimizer step."""
        steps = 0

        def counting(engine: Engine) -> None:
            nonlocal steps
            steps += 1
            if steps > after:
                raise Killed
            step(engine)

        step = Engine.step
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Engine, "step", counting)
            self.train(**more)
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
def whole(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained without an interruption."""
    run = Run(manifest, tmp_path_factory.mktemp("whole"), optim={"ema_decay": 0.9})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "stream_batches", _read_here)
        run.train()
    return run


def same(one: Run, other: Run) -> None:
    UR = [[(line["loss"], line["dev_UR"], line["dev_ce"]) for line in each.state.metrics] for each in (one, other)]
    assert UR[0] == UR[1]
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), name


def spoil(folder: str) -> None:
    """One byte of the largest file is another one."""
    file = max(Path(folder).iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_a_damaged_state_is_found_and_the_one_before_it_used(manifest: Manifest, tmp_path: Path, whole: Run):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9}, checkpoint_steps=4)
    state = run.kill(after=STEPS + 9)
    assert (state.latest.epoch, state.latest.cursor, state.previous[0].cursor) == (1, 8, 4)
    spoil(f"{run.folder}/{state.latest.resume_folder}")
    run.train()
    (told,) = run.told
    assert "is damaged" in told and "Going on from the state before it: epoch 1, batch 4" in told
    same(run, whole)


def test_a_state_without_its_seal_is_not_taken_for_whole_and_none_at_all_is_the_beginning(
    manifest: Manifest, tmp_path: Path, whole: Run
):
    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    state = run.kill(after=2 * STEPS + 2)
    for position in (state.latest, *state.previous):
        storage.delete(f"{run.folder}/{position.resume_folder}/SEAL.json")
    run.train()
    assert len(run.told) == 2 and "the beginning" in run.told[1]
    same(run, whole)


def test_a_notice_saves_the_state_at_once_and_training_goes_on(manifest: Manifest, tmp_path: Path, whole: Run):
    asked: list[int] = []

    def preemption_pending() -> bool:
        asked.append(1)
        return True

    run = Run(manifest, tmp_path / "run", optim={"ema_decay": 0.9})
    state = run.kill(after=11, preemption_pending=preemption_pending)
    assert (state.latest.epoch, state.latest.cursor, len(asked)) == (0, 10, 1), (
        "saved at the step at which it was asked"
    )
    run.train()
    same(run, whole)


def test_a_run_in_a_bucket_goes_on(manifest: Manifest, whole: Run, s3: str):
    run = Run(manifest, f"{s3}/going-on", optim={"ema_decay": 0.9}, checkpoint_steps=4)
    state = run.kill(after=STEPS + 5)
    assert (state.latest.epoch, state.latest.cursor) == (1, 4)
    run.train()
    same(run, whole)
    assert run.folders == {run.state.best_checkpoint_name}


def test_what_is_kept(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", keep_checkpoints=2, keep_resume_states=3)
    state = run.kill(after=3 * STEPS - 1)
    assert len([name for name in run.folders if name.startswith("resume-")]) == 2  # no third one was saved yet
    assert set(state.best_checkpoints(2)) <= run.folders
    state = run.train()
    assert run.folders == set(state.best_checkpoints(2)) and len(run.folders) == 2
    assert (state.latest, state.previous) == (ResumePoint(3), ())


def test_a_run_ends_when_dev_gets_no_better(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e-30, "epochs": 9, "early_stopping_patience": 2})
    state = run.train()
    assert (len(state.metrics), state.best_checkpoint_name) == (3, "best-0001")
    assert run.train() == state and len(run.lines) == 3, "it is done, and not trained again"


def test_a_patient_run_goes_on_where_it_was_killed(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e-30, "epochs": 9, "early_stopping_patience": 2})
    run.kill(after=2 * STEPS + 3)
    assert len(run.train().metrics) == 3


def test_a_loss_that_runs_away_is_diagnosed_and_nothing_bad_is_kept(manifest: Manifest, tmp_path: Path):
    run = Run(manifest, tmp_path / "run", optim={"lr": 1e9, "max_grad_norm": 1e9, "warmup_ratio": 0.0})
    with pytest.raises(
        TrainingError, match=r"epoch 1 the loss is .* on utt.*Learning rate .*e\+08, last gradient norm.* have run away"
    ):
        run.train()
    assert not run.folders


def test_a_batch_that_is_not_a_number_is_named(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collate = RankDataLoader.collate

    def spoilt(self: RankDataLoader, arrived: Any) -> Any:
        batch = collate(self, arrived)
        if 3 in arrived.rows:
            batch.inputs[0, :] = float("nan")
        return batch

    monkeypatch.setattr(RankDataLoader, "collate", spoilt)
    run = Run(manifest, tmp_path / "run")
    utterance = manifest.table["utterance"][3].as_py()
    with pytest.raises(TrainingError, match=rf"{utterance}.*weights are sound, so it comes from this batch"):
        run.train()


def test_what_cannot_be_saved_ends_the_run(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source: Path, location: str) -> Any:
        raise StorageError("no space left")

    monkeypatch.setattr(checkpointing.storage, "upload_folder", full)
    run = Run(manifest, tmp_path / "run")
    with pytest.raises(StorageError, match="rank 0 could not save its state: no space left"):
        run.train()
    assert run.state == RunState()


def test_a_line_says_what_an_epoch_cost(whole: Run):
    line = whole.lines[-1]
    parts = sum(line[f"seconds_{part}"] for part in ("data", "forward", "backward", "optimizer"))
    assert 0.5 * line["seconds"] < parts <= line["seconds"]
    assert line["grad_norm"] > 0 and line["memory_mb"] > 100
