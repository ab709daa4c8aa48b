"""Garbage collection deletes all garbage and nothing else, on a disk and in a bucket."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from lakd_ray import storage
from lakd_ray.cli.main import main
from lakd_ray.config import Experiment
from lakd_ray.ops import garbage
from lakd_ray.runs import record

PART = ".manifest.parquet.0123abcd.part"
FEATURES = ("features/abc/a.parquet", "features/abc/old.parquet")


@pytest.fixture(params=["disk", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def config(root: str) -> Experiment:
    """Write the folder of an experiment after a search, a killed run and a new teacher, and two other experiments."""
    folder = f"{root}/e"
    write(f"{root}/other/ray/state")
    write(f"{root}/e-too/distill/x/resume-0001/a")
    record.mark_finished(f"{folder}/prepare", {}, [])
    storage.write_table(
        f"{folder}/prepare/manifest.parquet", pa.table({"shard": ["a.parquet", "b.parquet", "a.parquet"]})
    )
    for name in ("shards/a.parquet", "shards/b.parquet", "shards/old.parquet", *FEATURES, PART):
        write(f"{folder}/prepare/{name}")
    run(f"{folder}/teachers/teacher-en", best=2, left=("best-0001", "resume-0003"))
    run(f"{folder}/teachers/teacher-fi", best=1)
    seal = storage.read_json(f"{folder}/teachers/teacher-fi/best-0001/SEAL.json")
    write(f"{folder}/teachers/logits/teacher-fi/{record.digest(seal)}/a.parquet")
    write(f"{folder}/teachers/logits/teacher-en/another/a.parquet")
    write(f"{folder}/teachers/logits/teacher-en/another/b.parquet")
    run(
        f"{folder}/distill/mtkd-multilingual",
        best=1,
        resume=2,
        left=("resume-0003", "resume-0001-00020"),
        finished=False,
    )
    record.mark_finished(f"{folder}/tune", {}, [])
    storage.write_json(f"{folder}/tune/trials.json", [{"trial": "b"}, {"trial": "a"}, {"trial": "c"}])
    run(f"{folder}/tune/trials/a", best=1, resume=1, finished=False)
    run(f"{folder}/tune/trials/b", best=3)
    run(f"{folder}/tune/trials/c", best=2)
    for name in ("tune/ray/tuner.pkl", "tune/best.yaml", "ray/train-1/x", "report/report.html"):
        write(f"{folder}/{name}")
    with storage.hold(folder):  # the last command has ended
        pass
    return experiment(root)


GARBAGE = {
    "prepare/shards/old.parquet",
    "prepare/features/abc/old.parquet",
    f"prepare/{PART}",
    "teachers/teacher-en/best-0001",
    "teachers/teacher-en/resume-0003",
    "teachers/logits/teacher-en/another",
    "distill/mtkd-multilingual/resume-0003",
    "distill/mtkd-multilingual/resume-0001-00020",
    "tune/trials/a/state.json tune/trials/a/best-0001 tune/trials/a/resume-0001",
    "tune/trials/c/state.json tune/trials/c/best-0002",
    "tune/ray",
    "ray",
}
GARBAGE_OF_FINISHED_RUNS = {name for name in GARBAGE if name.startswith(("teachers/teacher", "tune"))}


def experiment(root: str, **changes: Any) -> Experiment:
    return Experiment.model_validate(content(root) | changes)


def content(root: str) -> dict[str, Any]:
    recipe = {"model": {"pretrained": "none"}}
    corpora = [{"name": "c", "root": f"{root}/corpus"}]
    data = {"storage": root, "languages": ["en", "fi"], "corpora": corpora}
    return {"name": "e", **data, "teacher": recipe, "student": recipe}


def write(location: str, size: int = 1000) -> None:
    storage.write_bytes(location, os.urandom(size))


def run(
    folder: str, best: int, *, resume: int | None = None, left: tuple[str, ...] = (), finished: bool = True
) -> None:
    """Write the folder of a run, with folders that crashes left in it."""
    (record.mark_finished if finished else record.mark_started)(folder, {}, *([["state.json"]] if finished else []))
    in_use = [f"best-{best:04d}", *([f"resume-{resume:04d}"] if resume else [])]
    for name in (*in_use, *left):
        write(f"{folder}/{name}/model.safetensors", 5000)
        if name in in_use:
            storage.write_checksums(
                f"{folder}/{name}", [{"model.safetensors": {"bytes": 5000, "sha256": uuid.uuid4().hex}}]
            )
    state = {"best": in_use[0], "folders": in_use}
    storage.write_json(f"{folder}/state.json", state)
    write(f"{folder}/metrics.jsonl")


def list_sizes(root: str) -> dict[str, int]:
    files = {info.location.removeprefix(root + "/"): info.size for info in storage.list_files(root)}
    return {name: size for name, size in files.items() if "/lease/" not in name}


def find(config: Experiment) -> set[str]:
    return {" ".join(item.paths) for item in garbage.find_garbage(config).items}


def test_garbage_and_nothing_else_is_deleted(root, config):
    before = list_sizes(root)
    findings = garbage.find_garbage(config)
    assert {" ".join(item.paths) for item in findings.items} == GARBAGE
    assert findings.notes == []
    paths = [f"e/{path}" for names in GARBAGE for path in names.split()]
    deleted = {name for name in before if any(name == path or name.startswith(path + "/") for path in paths)}
    assert findings.size == sum(before[name] for name in deleted)
    assert list_sizes(root) == before
    assert garbage.delete_garbage(config, findings) == findings.size
    assert list_sizes(root) == {name: size for name, size in before.items() if name not in deleted}
    assert find(config) == set()


def set_clock_back(config: Experiment, hours: float) -> None:
    """Give all files on a disk the times of a storage whose clock differs from this machine's."""
    for path in Path(config.folder).rglob("*"):
        os.utime(path, (time.time() - 3600 * hours,) * 2)


def test_only_garbage_of_finished_runs_while_the_experiment_runs_whatever_the_clocks(config):
    code = "import sys; from lakd_ray import storage; lease = storage.Lease.acquire(sys.argv[1]); print(flush=True)"
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", config.folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None and driver.stdout.readline()
        for hours in (0, 2, -2):
            set_clock_back(config, hours)
            findings = garbage.find_garbage(config)
            assert {" ".join(item.paths) for item in findings.items} == GARBAGE_OF_FINISHED_RUNS
        garbage.delete_garbage(config, findings)
        assert f"is in use by `-c {config.folder}`" in findings.notes[0]
        assert storage.exists(f"{config.folder}/ray/train-1/x")


def test_an_unfinished_run_of_a_driver_without_a_lease_counts_as_running(config):
    storage.delete(f"{config.folder}/lease")
    findings = garbage.find_garbage(config)
    assert {" ".join(item.paths) for item in findings.items} == GARBAGE_OF_FINISHED_RUNS
    assert "distill/mtkd-multilingual is not finished, and no command has recorded" in findings.notes[0]


def test_what_is_no_longer_garbage_is_left(config):
    findings = garbage.find_garbage(config)
    state = {"best": "best-0001", "folders": ["best-0001", "resume-0003"]}
    storage.write_json(f"{config.folder}/distill/mtkd-multilingual/state.json", state)
    garbage.delete_garbage(config, findings)
    assert storage.exists(f"{config.folder}/distill/mtkd-multilingual/resume-0003")
    assert not storage.exists(f"{config.folder}/tune/ray/tuner.pkl")


def test_an_unfinished_search_retains_its_trials(config):
    record.mark_started(f"{config.folder}/tune", {})
    assert find(config) == {name for name in GARBAGE if not name.startswith("tune")}


def test_report_has_sizes_and_reasons(config):
    lines = garbage.format_report(garbage.find_garbage(config)).splitlines()
    assert any("distill/mtkd-multilingual/resume-0003: incomplete write" in line for line in lines)
    assert any("5.0 kB  teachers/teacher-en/resume-0003" in line for line in lines)
    assert any(
        "teachers/logits/teacher-en/another: logits of an earlier checkpoint of teacher-en" in line for line in lines
    )
    assert lines[-1].endswith(f"total in {config.folder}")


def test_no_garbage(root):
    findings = garbage.find_garbage(experiment(root, name="absent"))
    assert (findings.items, findings.notes) == ([], [])
    assert garbage.format_report(findings) == "nothing to delete"


def test_links_are_left_alone(tmp_path):
    target = tmp_path / "target"
    write(f"{target}/precious")
    (tmp_path / "out" / "e").mkdir(parents=True)
    (tmp_path / "out" / "e" / "ray").symlink_to(target)
    config = experiment(str(tmp_path / "out"))
    findings = garbage.find_garbage(config)
    assert findings.items == []
    assert "ray is a symlink out of the experiment's folder" in findings.notes[0]
    garbage.delete_garbage(config, findings)
    assert (target / "precious").exists()


class TestCommand:
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "out")

    @pytest.fixture
    def file(self, root: str, config: Experiment, tmp_path: Path) -> str:
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(content(root)))
        return str(tmp_path / "e.yaml")

    def test_without_a_terminal_it_requires_yes(self, root, file, capsys):
        before = list_sizes(root)
        assert main(["gc", file]) == 1
        captured = capsys.readouterr()
        assert "add --yes" in captured.err
        assert "ray: state of Ray Train" in captured.out
        assert main(["gc", file, "--dry-run"]) == 0
        assert list_sizes(root) == before

    @pytest.mark.parametrize(("answer", "deletes"), [("", False), ("n", False), ("y", True)])
    def test_in_a_terminal_it_requires_confirmation(self, root, file, capsys, monkeypatch, answer, deletes):
        before = list_sizes(root)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda prompt: answer)
        assert main(["gc", file]) == 0
        assert (list_sizes(root) != before) == deletes
        assert ("freed" in capsys.readouterr().out) == deletes

    def test_yes_deletes_without_confirmation(self, root, config, file, capsys):
        assert main(["gc", file, "--yes"]) == 0
        assert "freed" in capsys.readouterr().out
        assert main(["gc", file, "--yes"]) == 0
        assert "nothing to delete" in capsys.readouterr().out
        assert main(["gc", file, "--yes", "--set", "name=other"]) == 0
        assert f"{Path(root).name}" in root
