"""Execute docs/tour.ipynb. Run this file to execute the notebook again and store it with its outputs."""

import tempfile
from pathlib import Path
from typing import Any

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tour.ipynb"


def execute(folder: Path, timeout_s: int = 600) -> Any:
    """Return the notebook, executed in a folder; the standard error of its cells, which has times, is left out."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=timeout_s, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined_streams([output for output in cell.outputs if output.get("name") != "stderr"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _joined_streams(outputs: list[Any]) -> list[Any]:
    """Join neighboring text outputs: where the kernel splits a cell's text differs from run to run."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tour-") as folder:
        nbformat.write(execute(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
