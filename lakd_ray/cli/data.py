"""Define the commands that list importers and scan corpora."""

import dataclasses
import json
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand
from lakd_ray.cli.options import JsonOption
from lakd_ray.cli.output import print_text
from lakd_ray.config import parse_overrides


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command = app.command(cls=LakdCommand, rich_help_panel=options.DATA_PANEL)
    command(corpora)
    command(scan)


def corpora(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="IMPORTER",
            help="Show this importer with its options.",
            autocompletion=options.complete_importers,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the corpora that can be imported, with layout, license and source."""
    from lakd_ray.corpora import IMPORTERS, get_importer_spec  # only this command needs it

    importers = IMPORTERS if name is None else {name: get_importer_spec(name)}
    if as_json:
        entries = {
            key: {
                "layout": importer.layout,
                "license": importer.license,
                "availability": importer.availability,
                "options": dict(importer.options),
                "utterances": importer.expected_counts.get(""),
            }
            for key, importer in importers.items()
        }
        print_text(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    for key, importer in importers.items():
        print_text(
            f"{key}\n  layout   {importer.layout}\n  license  {importer.license}\n  obtain   {importer.availability}"
        )
        for option, text in importer.options.items() if name else ():
            print_text(f"  option   {option}: {text}")
        if name and importer.expected_counts.get(""):
            print_text(f"  size     {importer.expected_counts['']} utterances")


def scan(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="IMPORTER",
            help="Importer of the corpus, see `lakd corpora`.",
            autocompletion=options.complete_importers,
            show_default=False,
        ),
    ],
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="Folder or manifest, local or in a bucket.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE...",
            help="Options of the importer, values are YAML. Takes several pairs.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read a corpus and report its contents and its faults, without writing anything."""
    from lakd_ray.corpora import scan as scanner  # soundfile is loaded where it is used

    report = scanner.scan_corpus(corpus, root, parse_overrides(overrides or ()))
    if as_json:
        print_text(json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False))
    else:
        print_text(scanner.format_report(report))
