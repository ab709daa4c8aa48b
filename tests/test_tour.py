"""The notebook docs/tour.ipynb, as it is stored with its outputs, and executed again."""

import re
from typing import Any

import nbformat
import pytest
from support import notebook


def outputs(content: Any) -> list[Any]:
    return [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(content: Any) -> str:
    """Return the text of all outputs."""
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(content))


def test_the_notebook_is_stored_with_outputs_without_paths_of_a_machine():
    content: Any = nbformat.read(notebook.NOTEBOOK, as_version=4)
    nbformat.validate(content)
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    pictures = [output for output in outputs(content) if "image/png" in output.get("data", {})]
    players = [output for output in outputs(content) if "<audio" in output.get("data", {}).get("text/html", "")]
    assert len(pictures) >= 3 and players
    assert not re.search(r"/(home|root|tmp|work|Users)/", texts(content))
    assert notebook.NOTEBOOK.stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path):
    executed = notebook.execute(tmp_path)
    assert not [output for output in outputs(executed) if output.output_type == "error"]
    stored: Any = nbformat.read(notebook.NOTEBOOK, as_version=4)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in stored.cells]
    assert [output.output_type for output in outputs(executed)] == [output.output_type for output in outputs(stored)]
    assert re.search(r"^prediction (anger|happiness|neutral|sadness)$", texts(executed), re.MULTILINE)
