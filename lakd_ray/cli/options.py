"""Arguments and options that several commands share, and their completion."""

from pathlib import Path
from typing import Annotated

import typer

from lakd_ray.config import Backend, experiment_names

STAGES_PANEL = "Pipeline stages"
DATA_PANEL = "Data"
MODELS_PANEL = "Models"
SEARCH_PANEL = "Search"
OPERATIONS_PANEL = "Operations"
CONFIGURATION_PANEL = "Configuration"


def complete_experiments(incomplete: str) -> list[str]:
    """Return the experiments whose name starts with the given text, and YAML files that do."""
    names = [name for name in experiment_names() if name.startswith(incomplete)]
    return [*names, *sorted(str(file) for file in Path().glob(f"{incomplete}*.yaml"))]


def complete_importers(incomplete: str) -> list[tuple[str, str]]:
    """Return the importers whose name starts with the given text, with their layouts."""
    from lakd_ray.corpora import IMPORTERS

    return [(name, importer.layout) for name, importer in IMPORTERS.items() if name.startswith(incomplete)]


ExperimentArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="Name of an experiment in the package, such as [bold]demo[/], or path of a YAML file.",
        autocompletion=complete_experiments,
        show_default=False,
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE...",
        help="Override fields of the experiment: dotted.key=value, values are YAML. Takes several pairs.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BackendOption = Annotated[Backend, typer.Option(help="Inference backend, see docs/how-to/export.md.")]
