"""A second command on an experiment is rejected before Ray starts, and `lakd unlock` takes a folder away."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lakd_ray import cluster, storage
from lakd_ray.cli.main import main

HOLD = (
    "import sys; from lakd_ray import storage; lease = storage.Lease.acquire(sys.argv[1]); print(flush=True); input()"
)


@pytest.fixture
def file(tmp_path: Path) -> str:
    recipe = {"model": {"pretrained": "none"}}
    content = {"name": "e", "storage": f"{tmp_path}/out", "languages": ["en"], "teacher": recipe, "student": recipe}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({**content, "corpora": [{"name": "c", "root": str(tmp_path)}]}))
    return str(tmp_path / "e.yaml")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds the lease of the experiment."""
    command = [sys.executable, "-c", HOLD, f"{tmp_path}/out/e"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.kill()


@pytest.mark.parametrize("command", ["prepare", "train-teachers", "tune", "evaluate", "pipeline", "run-grid"])
def test_a_second_command_is_rejected_before_ray_starts(command, file, driver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "experiment_session", lambda config: pytest.fail("Ray was started"))
    assert main([command, file]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path}/out/e is in use by ")
    assert f"process {driver.pid} on " in message


def test_unlock_takes_the_folder_away_after_a_confirmation(driver, tmp_path, capsys):
    folder = f"{tmp_path}/out/e"
    assert main(["unlock", folder]) == 1, "not in a terminal"
    assert f"process {driver.pid} on " in capsys.readouterr().out
    assert storage.find_holder(folder) is not None
    assert main(["unlock", folder, "--yes"]) == 0
    assert storage.find_holder(folder) is None
    assert main(["unlock", folder, "--yes"]) == 0
    assert "no process works on" in capsys.readouterr().out
