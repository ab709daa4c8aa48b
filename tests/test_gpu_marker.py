"""Tests with the marker `gpu` show warnings, which are errors in all other tests."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
MODULE = """
import warnings
import pytest

@pytest.mark.gpu
def test_on_a_gpu():
    warnings.warn("a library warns on a GPU", DeprecationWarning)

def test_on_a_cpu():
    warnings.warn("a library warns", DeprecationWarning)
"""


def test_a_warning_does_not_fail_a_test_on_a_gpu(tmp_path: Path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_module.py").write_text(MODULE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(TESTS.parent / "pyproject.toml"),
    ]
    command += ["-o", f"pythonpath={TESTS}", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert "FAILED test_module.py::test_on_a_cpu - DeprecationWarning" in done.stdout, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
