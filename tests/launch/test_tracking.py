"""Trackers are told every epoch once, whatever was interrupted; what fails in one stays there."""

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


def experiment(where: str, **tracked: Any) -> Experiment:
    recipe = {"model": {"pretrained": "some/model"}}
    split = {"scheme": "speaker-groups", "groups": [["anna"], ["berta"]]}
    corpus = {"name": "one", "root": "/home/carla", "emotion_map": {"Freude!": "happiness"}, "split": split}
    brought = [{"name": "other", "checkpoint": "hub/name", "trained_on": ["one:dora"]}]
    return Experiment.model_validate(
        {
            "name": "watched", "storage": where, "languages": ["en", "fi"], "corpora": [corpus], "teacher": recipe,
            "student": recipe, "distill": {"external_teachers": brought}, "tracking": tracked,
        }
    )  # fmt: skip


def tasks_of(config: Experiment) -> dict[str, TrainingTask]:
    return {run.id: TrainingTask(config, run) for run in build_run_graph(config).evaluated}


def line(epoch: int, run: str = EN) -> dict[str, Any]:
    recall = {"en": 0.25 * epoch, "fi": 0.5}
    return {
        "run": run, "epoch": epoch, "epochs": 4, "loss": 1 / epoch, "ce": 0.5, "lr": 0.125, "dev_UR": 0.25 * epoch,
        "dev_ce": 1.0, "dev_recall": recall, "audio_seconds_per_second": 64.0, "padding": 0.0625, "seconds": 8.0,
        "seconds_data": 2.0,
    }  # fmt: skip


def event(epoch: int, run: str = EN) -> dict[str, Any]:
    return {"event": "epoch", "run": run, "line": line(epoch, run)}


def finished(run: str = EN) -> dict[str, Any]:
    return {"event": "finished", "run": run, "group": "teachers"}


def trained(task: TrainingTask, epochs: int) -> None:
    """Leave a run's folder as its worker has by then."""
    folder = task.run.folder(task.config)
    RunState(metrics=tuple(line(epoch, task.run.id) for epoch in range(1, epochs + 1))).write(folder)


def points(location: str) -> Points:
    """What TensorBoard reads from a run's folder, not knowing of our restarts: any epoch that is twice shows."""
    from tensorboardX.proto.event_pb2 import Event

    found: Points = {}
    for file in sorted(info.location for info in storage.list_files(location)):
        content = storage.read_bytes(file)
        while content:
            (size,) = struct.unpack_from("<Q", content)
            record = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in record.summary.value:
                found.setdefault(value.tag, []).append((record.step, value.simple_value))
    return found


class Fake:
    """Remembers what it was told, and fails at an epoch."""

    name = "Fake"

    def __init__(self, *, fails_at: int = 0, holds: int = 0) -> None:
        self.fails_at, self.holds = fails_at, holds
        self.told: list[tuple[str, str | int]] = []

    def start_run(self, config: Experiment, run: Run) -> int:
        self.told.append((run.id, "open"))
        return self.holds

    def log_epoch(self, run: str, line: Any) -> None:
        if line["epoch"] == self.fails_at:
            raise OSError(28, "No space left on device")
        self.told.append((run, line["epoch"]))

    def end_run(self, run: str, outcome: RunStatus) -> None:
        self.told.append((run, outcome))


@pytest.fixture
def config(tmp_path: Path) -> Experiment:
    return experiment(str(tmp_path))


@pytest.fixture
def tasks(config: Experiment) -> dict[str, TrainingTask]:
    return tasks_of(config)


def test_numbers_are_grouped_and_the_rest_is_left_alone():
    extra = {"grad_norm": 3, "memory_mb": None, "steps": 7, "note": "x", "flag": True, "other_one": 2, "dev_seconds": 1}
    assert flatten_metrics(line(2) | extra) == {
        "loss/total": 0.5, "loss/ce": 0.5, "dev/UR": 0.5, "dev/UR/en": 0.5, "dev/UR/fi": 0.5, "dev/ce": 1.0,
        "optim/lr": 0.125,
        "optim/grad_norm": 3.0, "optim/steps": 7.0, "speed/audio_seconds_per_second": 64.0, "data/padding": 0.0625,
        "time/train": 8.0, "time/data": 2.0, "time/dev": 1.0, "other/other_one": 2.0,
    }  # fmt: skip


def test_settings_name_neither_speakers_nor_places(tasks):
    for task in tasks.values():
        told = hyperparameters(task.config, task.run)
        assert not [name for name in ("anna", "berta", "carla", "dora") if name in str(told)]
        assert (told["corpora.one.split.groups"], told["student.optim.betas"]) == (2, "0.9, 0.999")
        assert (told["fold"], told["distill.external_teachers.0.name"], told["variant"]) == (0, "other", "null")
    assert run_tags(task.config, task.run)["paradigm"] == "mtkd"


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_event_files(place, tmp_path, request):
    where = str(tmp_path) if place == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    config = experiment(where)
    with track_runs(build_trackers(config), tasks_of(config)) as tell:
        for epoch in (1, 2):
            tell({"event": "started", "run": EN, "group": "teachers"})
            tell(event(epoch, EN))
            tell(event(epoch, FI))
        tell(finished(EN))
    for run in (EN, FI):
        found = points(f"{where}/watched/tensorboard/{run}")
        assert found["dev/UR/en"] == [(1, 0.25), (2, 0.5)]
        assert found["loss/total"] == [(1, 1.0), (2, 0.5)]
        assert found.keys() == flatten_metrics(line(1)).keys()
    assert not (tmp_path / "watched").exists() or place == "disk"


def test_an_epoch_lies_there_before_the_run_ends(config, tasks):
    with track_runs(build_trackers(config), tasks) as tell:
        tell(event(1))
        deadline = time.monotonic() + 10
        while not points(f"{config.folder}/tensorboard/{EN}") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert points(f"{config.folder}/tensorboard/{EN}")["dev/UR"] == [(1, 0.25)]


def test_no_epoch_is_there_twice_after_an_interruption(config, tasks):
    with track_runs(build_trackers(config), tasks) as tell:
        for epoch in (1, 2, 3):
            tell(event(epoch))
    trained(tasks[EN], 2)  # the state of the third is lost, and it is trained again
    with track_runs(build_trackers(config), tasks) as tell:
        for epoch in (3, 3, 4):
            tell(event(epoch))
        tell(finished())
    assert points(f"{config.folder}/tensorboard/{EN}")["dev/UR"] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def test_what_nobody_was_there_to_tell_is_made_up_for(tasks):
    trained(tasks[EN], 3)
    fakes = [Fake(), Fake(holds=1), Fake(holds=3)]
    with track_runs(fakes, tasks) as tell:
        tell(event(4))
        tell(finished())
    assert [fake.told[1:-1] for fake in fakes] == [[(EN, epoch) for epoch in range(first, 5)] for first in (1, 2, 4)]


def test_how_runs_end(tasks):
    fake = Fake()
    with track_runs([fake], tasks) as tell:
        tell({"event": "lost", "run": "teachers", "reason": "the node went"})
        tell(event(1, EN))
        tell(event(1, FI))
        tell({"event": "failed", "run": EN, "reason": "the loss is nan"})
        tell({"event": "failed", "run": "mtkd-multilingual-f0-s42", "reason": f"needs {EN}, which failed"})
    assert fake.told == [(EN, "open"), (EN, 1), (FI, "open"), (FI, 1), (EN, "failed"), (FI, "interrupted")]


def test_runs_that_are_not_trained_leave_nothing(config, tasks):
    with track_runs(build_trackers(config), tasks) as tell:
        tell(finished())
    assert not Path(config.folder).exists()
    assert build_trackers(experiment(config.storage, tensorboard=False)) == []


def test_one_that_fails_is_left_out_and_says_so_once(tasks, capsys):
    good, bad = Fake(), Fake(fails_at=2)
    with track_runs([bad, good], tasks) as tell:
        for epoch in (1, 2, 3, 4):
            tell(event(epoch))
        tell(finished())
    assert bad.told == [(EN, "open"), (EN, 1), (EN, "interrupted")]
    assert [what for _, what in good.told] == ["open", 1, 2, 3, 4, "finished"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "Fake is left out from here on" in said[0]
    assert "No space left" in said[0]


def test_a_full_disk_is_told_and_nothing_else_happens(config, tasks, capsys):
    Path(config.folder).parent.mkdir(exist_ok=True)
    Path(config.folder).write_text("a file where a folder should be")
    with track_runs(build_trackers(config), tasks) as tell:
        tell(event(1))
    assert "TensorBoard is left out from here on" in capsys.readouterr().out


def test_one_that_hangs_is_not_waited_for_long(tasks, monkeypatch, capsys):
    monkeypatch.setattr(manager, "_CLOSE_TIMEOUT_S", 0.2)
    released, good = threading.Event(), Fake()

    class Hangs(Fake):
        def start_run(self, config: Experiment, run: Run) -> int:
            released.wait(20)
            return 0

    started = time.monotonic()
    try:
        with track_runs([Hangs(), good], tasks) as tell:
            tell(event(1))
        assert time.monotonic() - started < 5
    finally:
        released.set()
    assert [what for _, what in good.told] == ["open", 1, "interrupted"]
    assert "it has not taken everything" in capsys.readouterr().out
    for thread in threading.enumerate():
        if thread.name.startswith("track"):
            thread.join(20)


@pytest.mark.parametrize(("name", "content"), [("mlflow", {"uri": "https://host:5000"}), ("wandb", {})])
def test_what_is_not_installed_is_refused_at_once(name, content, tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "_is_installed", lambda _: False)
    with pytest.raises(ConfigError, match=rf"`tracking\.{name}` is set, .* install lakd-ray\[{name}\]"):
        build_trackers(experiment(str(tmp_path), **{name: content}))
    check_tracker_packages(experiment(str(tmp_path)))


@pytest.mark.parametrize(
    ("uri", "refusal"),
    [
        ("mlruns", "expected a server"),
        ("sqlite:///here.db", "absolute path"),
        ("https://anna:secret@host", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_places_that_mlflow_is_not_to_write_to(uri, refusal, tmp_path):
    with pytest.raises(ValidationError, match=refusal):
        experiment(str(tmp_path), mlflow={"uri": uri})
    experiment(str(tmp_path), mlflow={"uri": "sqlite:////data/mlflow.db"})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own: both packages write there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, capsys):
    client_of = pytest.importorskip("mlflow.tracking", reason="the mlflow extra is not installed").MlflowClient
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = experiment(str(tmp_path), tensorboard=False, mlflow={"uri": uri})
    tasks = tasks_of(config)
    for first in (1, 3):
        with track_runs(build_trackers(config), tasks) as tell:
            for epoch in (first, first + 1):
                tell(event(epoch))
        trained(tasks[EN], 2)
    assert "left out" not in capsys.readouterr().out
    client = client_of(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("watched").experiment_id])
    history = client.get_metric_history(run.info.run_id, "dev/UR/en")
    assert [(one.step, one.value) for one in history] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert (run.info.run_name, run.info.status) == (EN, "KILLED")
    assert run.data.params["teacher.model.pretrained"] == "some/model"
    assert run_tags(config, tasks[EN].run).items() <= run.data.tags.items()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_weights_and_biases_offline(place, tmp_path, capsys, request):
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    where = str(tmp_path) if place == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    config = experiment(where, tensorboard=False, wandb={})
    tasks = tasks_of(config)
    for first in (1, 3):
        with track_runs(build_trackers(config), tasks) as tell:
            for run in (EN, FI):
                tell(event(first, run))
                tell(event(first + 1, run))
            tell(finished())
        for run in (EN, FI):
            trained(tasks[run], 2)
    assert "left out" not in capsys.readouterr().out
    for run in (EN, FI):
        files = [info.location for info in storage.list_files(f"{where}/watched/wandb/{run}")]
        (file,) = [file for file in files if file.endswith(".wandb") and "latest-run" not in file]
        assert wandb_history(storage.read_bytes(file)) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]


def wandb_history(content: bytes) -> list[tuple[int, float]]:
    """Steps and `dev/UR` of a file that `wandb sync` would send: LevelDB's log format after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, whole, found = 7, b"", []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # the rest of a block, too short for a record's head
            position += 32768 - position % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "dev/UR" in values:
                found.append((record.history.step.num, float(values["dev/UR"])))
    return found
