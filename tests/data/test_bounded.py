"""Test that the memory for streaming does not grow with the size of the corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.bounded_worker import StreamReport

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_corpus_larger_than_the_object_store_streams_without_spilling(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, str(HERE.parent / "support" / "bounded_worker.py"), str(tmp_path)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = StreamReport(**json.loads(done.stdout.splitlines()[-1]))
    assert report.complete
    assert report.streamed_bytes > 5 * report.object_store_bytes
    assert not report.spilled, report.memory_summary
    assert report.growth_bytes < report.object_store_bytes
