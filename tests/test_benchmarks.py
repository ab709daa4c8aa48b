"""The benchmark for a GPU: its table from stored figures, and all its sections with small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = ("environment", "ceilings", "share", "epoch", "ray_train", "endpoint", "tests")


def write_table(raw: Path, out: Path) -> str:
    """Write the table in a process without torch and Ray, and return it."""
    command = [sys.executable, "benchmarks/gpu.py", "table", "--raw", str(raw), "--out", str(out)]
    check = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    check += "assert not {'torch', 'ray', 'lakd_ray'} & sys.modules.keys()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}
    subprocess.run([command[0], "-c", check, *command[1:]], cwd=ROOT, env=environment, check=True)
    return (out / "gpu.md").read_text()


def store(raw: Path, section: str, status: str | None, log: str = "", **content: Any) -> None:
    raw.mkdir(exist_ok=True)
    if content:
        (raw / f"{section}.json").write_text(json.dumps({"facts": {}, "figures": []} | content))
    if status is not None:
        (raw / f"{section}.status").write_text(status)
    (raw / f"{section}.log").write_text(log)


def figure(name: str, values: list[float], **options: Any) -> dict[str, Any]:
    return {"name": name, "values": values, **options}


def test_the_table_shows_aims_failures_and_logs(tmp_path: Path):
    raw = tmp_path / "raw"
    store(raw, "environment", "0 3.2", facts={"card": "H100", "commit": "abc", "unexpected_versions": ["x 1, not >=2"]})
    store(raw, "ceilings", "0 9.9", figures=[figure("bf16, TFLOP/s", [700, 720, 790], digits=0, memory_gib=1.25)])
    share = [figure("fine-tuning", [0.5, 0.4, 0.46], digits=2, aim=0.45), figure("compiled", [], failure="no | gcc\n")]
    store(raw, "share", "1 20", "first\n" + "line\n" * 20 + "the end", figures=share)
    slow = [figure("of the bare loop's", [1.04], digits=2, aim=1.03, at_most=True)]
    store(raw, "ray_train", "124 160.2", figures=slow)
    store(raw, "endpoint", None, "no time left")
    table = write_table(raw, tmp_path / "out")
    for row in (
        "| bf16, TFLOP/s | 720 (700 to 790) |  | 1.2 |",
        "| fine-tuning | 0.46 (0.40 to 0.50) | at least 0.45, met |  |",
        "| compiled | failed: no / gcc |  |  |",
        "| **training and teachers, share of the matrix product rate** | failed: exit status 1 | | |",
        "| of the bare loop's | 1.04 | at most 1.03, **missed** |  |",
        "| **inside Ray Train, streaming from shards** | failed: stopped after 160 s | | |",
        "| **the endpoint** | failed: no time left | | |",
        "| **a multi-teacher epoch** | not run | | |",
    ):
        assert f"\n{row}\n" in table
    assert "card H100, commit abc\n" in table
    assert "Versions outside the requirements of this project: x 1, not >=2." in table
    assert "the end\n```" in table and "first" not in table
    stored = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [section["name"] for section in stored] == list(SECTIONS)
    assert stored[2]["figures"][0]["values"] == [0.5, 0.4, 0.46]


def test_figures_before_a_failure_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from figures import Recorder, Section

    recorder = Recorder(tmp_path / "epoch.json")
    recorder.add("first", [1.0])
    with recorder.attempt("second"):
        raise RuntimeError("out of memory")
    figures = Section.read("epoch", "", tmp_path).figures
    assert [(item.name, item.values, item.failure) for item in figures] == [
        ("first", [1.0], ""),
        ("second", [], "RuntimeError: out of memory"),
    ]


def test_speed_is_compared_at_an_equal_percentile(monkeypatch: pytest.MonkeyPatch):
    """A faster level with a higher percentile does not count; no level within it counts as zero."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from serve import Level, speed_within

    levels = [Level(1, 50, 0.02), Level(8, 200, 0.1), Level(32, 300, 0.4)]
    assert speed_within(levels, 0.1) == 200
    assert speed_within(levels, 0.01) == 0


def test_the_small_script_names_every_section():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert f'sections="{" ".join(SECTIONS)}"' in script
    assert all(f"[{section}]=" in script for section in SECTIONS)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_every_section_runs_with_small_sizes(tmp_path: Path):
    """On CPUs here: it tests the script, and measures nothing."""
    environment = {**os.environ, "PYTHON": sys.executable, "HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("RAY_ADDRESS", None)
    script = ["bash", "benchmarks/gpu.sh", "--small", str(tmp_path / "out")]
    subprocess.run(script, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    table = (tmp_path / "out" / "gpu.md").read_text()
    assert "failed:" not in table, table
    assert table.count("not run") == 0
