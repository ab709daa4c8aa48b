"""Trackers receive every epoch once across interruptions; a failing tracker affects neither training nor others."""

import struct
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.errors import ConfigError
from lakd_ray.launch.tracking import manager
from lakd_ray.launch.tracking.base import RunStatus, flatten_metrics, hyperparameters, run_tags
from lakd_ray.launch.tracking.manager import build_trackers, check_tracker_packages, track_runs
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.state import RunState

EN, FI = "teacher-en-f0-s42", "teacher-fi-f0-s42"
Points = dict[str, list[tuple[int, float]]]


def experiment(storage_root: str, **tracked: Any) -> Experiment:
    recipe = {"model": {"pretrained": "some/model"}}
    split = {"scheme": "speaker-groups", "groups": [["anna"], ["berta"]]}
    corpus = {"name": "one", "root": "/home/carla", "emotion_map": {"Freude!": "happiness"}, "split": split}
    external = [{"name": "other", "checkpoint": "hub/name", "trained_on": ["one:dora"]}]
    return Experiment.model_validate(
        {
            "name": "watched", "storage": storage_root, "languages": ["en", "fi"], "corpora": [corpus],
            "teacher": recipe, "student": recipe, "distill": {"external_teachers": external}, "tracking": tracked,
        }
    )  # fmt: skip


def tasks_of(config: Experiment) -> dict[str, TrainingTask]:
    return {run.id: TrainingTask(config, run) for run in build_run_graph(config).evaluated}


def metrics_of(epoch: int, run: str = EN) -> dict[str, Any]:
    recall = {"en": 0.25 * epoch, "fi": 0.5}
    return {
        "run": run, "epoch": epoch, "epochs": 4, "loss": 1 / epoch, "ce": 0.5, "lr": 0.125, "dev_UR": 0.25 * epoch,
        "dev_ce": 1.0, "dev_recall": recall, "audio_seconds_per_second": 64.0, "padding": 0.0625, "seconds": 8.0,
        "seconds_data": 2.0,
    }  # fmt: skip


def event(epoch: int, run: str = EN) -> dict[str, Any]:
    return {"event": "epoch", "run": run, "line": metrics_of(epoch, run)}


def finished(run: str = EN) -> dict[str, Any]:
    return {"event": "finished", "run": run, "group": "teachers"}


def save_state(task: TrainingTask, epochs: int) -> None:
    """Write the state of a run as its worker does after some epochs."""
    folder = task.run.folder(task.config)
    RunState(metrics=tuple(metrics_of(epoch, task.run.id) for epoch in range(1, epochs + 1))).write(folder)


def points(location: str) -> Points:
    """Read a run's event files as TensorBoard does, without knowledge of restarts: a repeated epoch shows."""
    from tensorboardX.proto.event_pb2 import Event

    read: Points = {}
    for file in sorted(info.location for info in storage.list_files(location)):
        content = storage.read_bytes(file)
        while content:
            (size,) = struct.unpack_from("<Q", content)
            record = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in record.summary.value:
                read.setdefault(value.tag, []).append((record.step, value.simple_value))
    return read


class FakeTracker:
    """Records its calls, and fails at a given epoch."""

    name = "Fake"

    def __init__(self, *, fails_at: int = 0, last_epoch: int = 0) -> None:
        self.fails_at, self.last_epoch = fails_at, last_epoch
        self.calls: list[tuple[str, str | int]] = []

    def start_run(self, config: Experiment, run: Run) -> int:
        self.calls.append((run.id, "open"))
        return self.last_epoch

    def log_epoch(self, run: str, metrics: Any) -> None:
        if metrics["epoch"] == self.fails_at:
            raise OSError(28, "No space left on device")
        self.calls.append((run, metrics["epoch"]))

    def end_run(self, run: str, status: RunStatus) -> None:
        self.calls.append((run, status))


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    return experiment(str(tmp_path))


@pytest.fixture
def tasks(config: Experiment) -> dict[str, TrainingTask]:
    return tasks_of(config)


def test_numbers_are_grouped_and_other_values_are_omitted():
    extra = {"grad_norm": 3, "memory_mb": None, "steps": 7, "note": "x", "flag": True, "other_one": 2, "dev_seconds": 1}
    assert flatten_metrics(metrics_of(2) | extra) == {
        "loss/total": 0.5, "loss/ce": 0.5, "dev/UR": 0.5, "dev/UR/en": 0.5, "dev/UR/fi": 0.5, "dev/ce": 1.0,
        "optim/lr": 0.125,
        "optim/grad_norm": 3.0, "optim/steps": 7.0, "speed/audio_seconds_per_second": 64.0, "data/padding": 0.0625,
        "time/train": 8.0, "time/data": 2.0, "time/dev": 1.0, "other/other_one": 2.0,
    }  # fmt: skip


def test_hyperparameters_contain_neither_speakers_nor_locations(tasks):
    for task in tasks.values():
        settings = hyperparameters(task.config, task.run)
        assert not [name for name in ("anna", "berta", "carla", "dora") if name in str(settings)]
        assert (settings["corpora.one.split.groups"], settings["student.optim.betas"]) == (2, "0.9, 0.999")
        assert (settings["fold"], settings["distill.external_teachers.0.name"], settings["variant"]) == (
            0,
            "other",
            "null",
        )
    assert run_tags(task.config, task.run)["paradigm"] == "mtkd"


@pytest.mark.parametrize("backend", ["disk", "bucket"])
def test_event_files(backend, tmp_path, request):
    root = str(tmp_path) if backend == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    config = experiment(root)
    with track_runs(build_trackers(config), tasks_of(config)) as track:
        for epoch in (1, 2):
            track({"event": "started", "run": EN, "group": "teachers"})
            track(event(epoch, EN))
            track(event(epoch, FI))
        track(finished(EN))
    for run in (EN, FI):
        read = points(f"{root}/watched/tensorboard/{run}")
        assert read["dev/UR/en"] == [(1, 0.25), (2, 0.5)]
        assert read["loss/total"] == [(1, 1.0), (2, 0.5)]
        assert read.keys() == flatten_metrics(metrics_of(1)).keys()
    assert not (tmp_path / "watched").exists() or backend == "disk"


def test_an_epoch_is_written_before_the_run_ends(config, tasks):
    with track_runs(build_trackers(config), tasks) as track:
        track(event(1))
        deadline = time.monotonic() + 10
        while not points(f"{config.folder}/tensorboard/{EN}") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert points(f"{config.folder}/tensorboard/{EN}")["dev/UR"] == [(1, 0.25)]


def test_no_epoch_is_repeated_after_an_interruption(config, tasks):
    with track_runs(build_trackers(config), tasks) as track:
        for epoch in (1, 2, 3):
            track(event(epoch))
    save_state(tasks[EN], 2)  # the state of the third is lost, and it is trained again
    with track_runs(build_trackers(config), tasks) as track:
        for epoch in (3, 3, 4):
            track(event(epoch))
        track(finished())
    assert points(f"{config.folder}/tensorboard/{EN}")["dev/UR"] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_missed_epochs_are_taken_from_the_saved_metrics(tasks):
    save_state(tasks[EN], 3)
    trackers = [FakeTracker(), FakeTracker(last_epoch=1), FakeTracker(last_epoch=3)]
    with track_runs(trackers, tasks) as track:
        track(event(4))
        track(finished())
    assert [tracker.calls[1:-1] for tracker in trackers] == [
        [(EN, epoch) for epoch in range(first, 5)] for first in (1, 2, 4)
    ]


def test_status_at_the_end_of_runs(tasks):
    tracker = FakeTracker()
    with track_runs([tracker], tasks) as track:
        track({"event": "lost", "run": None, "group": "teachers", "reason": "the node was shut down"})
        track(event(1, EN))
        track(event(1, FI))
        track({"event": "failed", "run": EN, "reason": "the loss is nan"})
        track({"event": "failed", "run": "mtkd-multilingual-f0-s42", "reason": f"needs {EN}, which failed"})
    assert tracker.calls == [(EN, "open"), (EN, 1), (FI, "open"), (FI, 1), (EN, "failed"), (FI, "interrupted")]


def test_runs_without_training_write_no_files(config, tasks):
    with track_runs(build_trackers(config), tasks) as track:
        track(finished())
    assert not Path(config.folder).exists()
    assert build_trackers(experiment(config.storage, tensorboard=False)) == []


def test_a_failing_tracker_is_disabled_with_one_warning(tasks, caplog):
    good, bad = FakeTracker(), FakeTracker(fails_at=2)
    with track_runs([bad, good], tasks) as track:
        for epoch in (1, 2, 3, 4):
            track(event(epoch))
        track(finished())
    assert bad.calls == [(EN, "open"), (EN, 1), (EN, "interrupted")]
    assert [call for _, call in good.calls] == ["open", 1, 2, 3, 4, "finished"]
    (warning,) = caplog.messages
    assert "Fake is disabled" in warning
    assert "No space left" in warning


def test_a_full_disk_disables_the_tracker_only(config, tasks, caplog):
    Path(config.folder).parent.mkdir(exist_ok=True)
    Path(config.folder).write_text("a file where a folder should be")
    with track_runs(build_trackers(config), tasks) as track:
        track(event(1))
    assert "TensorBoard is disabled" in caplog.text


def test_a_tracker_that_hangs_delays_the_end_briefly(tasks, monkeypatch, caplog):
    monkeypatch.setattr(manager, "_CLOSE_TIMEOUT_S", 0.2)
    released, good = threading.Event(), FakeTracker()

    class Hangs(FakeTracker):
        def start_run(self, config: Experiment, run: Run) -> int:
            released.wait(20)
            return 0

    started = time.monotonic()
    try:
        with track_runs([Hangs(), good], tasks) as track:
            track(event(1))
        assert time.monotonic() - started < 5
    finally:
        released.set()
    assert [call for _, call in good.calls] == ["open", 1, "interrupted"]
    assert "it has not handled all events" in caplog.text
    for thread in threading.enumerate():
        if thread.name.startswith("track"):
            thread.join(20)


@pytest.mark.parametrize(("name", "content"), [("mlflow", {"uri": "https://host:5000"}), ("wandb", {})])
def test_a_missing_package_is_an_error_before_training(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "_is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=rf"`tracking\.{name}` is set, .* install lakd-ray\[{name}\]"):
        build_trackers(experiment(str(tmp_path), **{name: content}))
    check_tracker_packages(experiment(str(tmp_path)))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "expected a server"),
        ("sqlite:///here.db", "absolute path"),
        ("https://anna:secret@host", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_invalid_mlflow_servers_are_rejected(uri, message, tmp_path):
    with pytest.raises(ValidationError, match=message):
        experiment(str(tmp_path), mlflow={"uri": uri})
    experiment(str(tmp_path), mlflow={"uri": "sqlite:////data/mlflow.db"})


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary home directory: both packages write to it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.mark.usefixtures("own_home")
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, caplog):
    client_of = pytest.importorskip("mlflow.tracking", reason="the mlflow extra is not installed").MlflowClient
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = experiment(str(tmp_path), tensorboard=False, mlflow={"uri": uri})
    tasks = tasks_of(config)
    for first in (1, 3):
        with track_runs(build_trackers(config), tasks) as track:
            for epoch in (first, first + 1):
                track(event(epoch))
        save_state(tasks[EN], 2)
    assert "disabled" not in caplog.text
    client = client_of(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("watched").experiment_id])
    history = client.get_metric_history(run.info.run_id, "dev/UR/en")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert (run.info.run_name, run.info.status) == (EN, "KILLED")
    assert run.data.params["teacher.model.pretrained"] == "some/model"
    assert run_tags(config, tasks[EN].run).items() <= run.data.tags.items()


@pytest.mark.usefixtures("own_home")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["disk", "bucket"])
def test_weights_and_biases_offline(backend, tmp_path, caplog, request):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    root = str(tmp_path) if backend == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    config = experiment(root, tensorboard=False, wandb={})
    tasks = tasks_of(config)
    for first in (1, 3):
        with track_runs(build_trackers(config), tasks) as track:
            for run in (EN, FI):
                track(event(first, run))
                track(event(first + 1, run))
            track(finished())
        for run in (EN, FI):
            save_state(tasks[run], 2)
    assert "disabled" not in caplog.text
    for run in (EN, FI):
        files = [info.location for info in storage.list_files(f"{root}/watched/wandb/{run}")]
        (file,) = [file for file in files if file.endswith(".wandb") and "latest-run" not in file]
        assert wandb_history(storage.read_bytes(file)) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def wandb_history(content: bytes) -> list[tuple[int, float]]:
    """Read steps and `dev/UR` from a file for `wandb sync`: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, payload, history = 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block, too short for a record's header
            position += 32768 - position % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, position + 4)
        payload += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a complete record, or the last part of one
            record, payload = Record.FromString(payload), b""
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "dev/UR" in values:
                history.append((record.history.step.num, float(values["dev/UR"])))
    return history
