"""The worked examples of docs/how-to/extend.md: applied to a copy of the package, and tested there."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(?P<kind>\w+)(?: title="(?P<path>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of the page; its title is the path of the file."""

    kind: str
    path: str
    text: str


BLOCKS = [Block(match["kind"], match["path"], match["text"]) for match in BLOCK.finditer(PAGE)]
NEW_FILES = [block for block in BLOCKS if block.kind == "python"]


def apply_diff(text: str, diff: str) -> str:
    """Return a file with each hunk of a diff applied; the lines that a hunk replaces must occur exactly once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        assert all(line[:1] in ("", " ", "+", "-") for line in lines)
        old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in ("", " ", sign)) for sign in ("-", "+"))
        assert text.count(old) == 1, f"expected once, found {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with all examples of the page."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "lakd_ray", copy / "lakd_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "tests/test_architecture.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for block in BLOCKS:
        file = copy / block.path
        if block.kind == "diff":
            file.write_text(apply_diff(file.read_text(encoding="utf-8"), block.text), encoding="utf-8")
        else:
            assert not file.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
    return copy


def run(project: Path, *arguments: str) -> str:
    """Run a Python module in the copy and return its output, with that of a failure in the assertion."""
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_every_block_is_a_file_or_a_diff_of_one():
    assert all(block.path and block.kind in ("python", "diff") for block in BLOCKS)
    assert {"corpora", "distill", "models", "report"} <= {Path(block.path).parts[1] for block in NEW_FILES}


def test_examples_pass_their_tests_and_keep_the_architecture(extended: Path):
    tests = [block.path for block in NEW_FILES if block.path.startswith("tests/")]
    output = run(extended, "pytest", "-q", "-p", "no:cacheprovider", *tests, "tests/test_architecture.py")
    assert "passed" in output and "skipped" not in output


def test_examples_are_formatted_and_pass_the_linter(extended: Path):
    changed = sorted({block.path for block in BLOCKS if block.path.endswith(".py")})
    run(extended, "ruff", "check", "--no-cache", *changed)
    run(extended, "ruff", "format", "--no-cache", "--check", *changed)


def test_the_commands_know_the_new_importer_weighting_and_command(extended: Path):
    assert "option   takes: all (default) or first" in run(extended, "lakd_ray", "corpora", "studio")
    run(extended, "lakd_ray", "init", "mine", "--corpus", "studio", "--root", "recordings")
    resolved = run(extended, "lakd_ray", "config", "mine.yaml", "--set", "distill.mtkd.weighting=agreement")
    assert "weighting: agreement" in resolved and "importer: studio" in resolved
    assert run(extended, "lakd_ray", "count-importers").endswith(" importers\n")
