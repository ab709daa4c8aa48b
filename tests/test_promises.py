"""Every promise of SECURITY.md and docs/explanation/reliability.md names tests that hold it, and these exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("SECURITY.md", "docs/explanation/reliability.md")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def promises(document: str) -> list[tuple[int, str]]:
    """Return line number and last cell of each row in the tables whose last column is `test`."""
    found, is_promises = [], False
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), start=1):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            is_promises = False
        elif cells[-1] == "test":
            is_promises = True
        elif is_promises and set(line) - set("|- "):
            found.append((number, cells[-1]))
    return found


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_promises_name_tests_that_exist(document: str):
    rows = promises(document)
    assert rows, f"{document} has no table with a column `test`"
    for line, cell in rows:
        tests = TEST.findall(cell)
        assert tests and TEST.sub("", cell).strip(" ,") == "", (
            f"{document}:{line}: expected `tests/FILE.py::test_NAME`, separated by commas; found {cell!r}"
        )
        for file, name in tests:
            assert (ROOT / file).is_file(), f"{document}:{line}: there is no {file}"
            assert name in functions(file), f"{document}:{line}: {file} has no {name}"
