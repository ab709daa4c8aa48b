"""Define the commands that print and write experiment files: config and init."""

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand
from lakd_ray.cli.options import JsonOption, OverridesOption
from lakd_ray.cli.output import print_text
from lakd_ray.config import json_schema, load_config, to_dict, to_documented_yaml
from lakd_ray.errors import ConfigError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # as `name` of an experiment


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command = app.command(cls=LakdCommand, rich_help_panel=options.CONFIGURATION_PANEL)
    command(config)
    command(init)


def config(
    experiment: Annotated[
        str | None,
        typer.Argument(
            metavar="EXPERIMENT",
            help="Name of an experiment in the package, or path of a YAML file.",
            autocompletion=options.complete_experiments,
            show_default=False,
        ),
    ] = None,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of experiment files.")] = False,
) -> None:
    """Print the resolved configuration, every field with its documentation.

    The output is an experiment file again. --schema prints a JSON schema, with which editors complete and check keys.
    """
    if schema:
        print_text(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    if experiment is None:
        raise typer.BadParameter("give an EXPERIMENT, or --schema")
    resolved = load_config(experiment, overrides or ())
    if as_json:
        print_text(json.dumps(to_dict(resolved), indent=1, ensure_ascii=False))
    else:
        print_text(to_documented_yaml(resolved), end="")


def init(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of the experiment, or path of its YAML file.", show_default=False),
    ],
    corpus: Annotated[
        str,
        typer.Option(
            metavar="IMPORTER",
            help="Importer of the corpus, see `lakd corpora`: csv, audiofolder, huggingface, ...",
            autocompletion=options.complete_importers,
        ),
    ] = "csv",
    root: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder or manifest of the corpus.", show_default=False)
    ] = None,
    languages: Annotated[str, typer.Option(metavar="CODES", help="Language codes, separated by commas.")] = "en,fr",
    encoder: Annotated[
        str, typer.Option(metavar="MODEL", help="Pretrained encoder: hub name or folder.")
    ] = "facebook/wav2vec2-base",
) -> None:
    """Write a commented experiment file for your own corpus: NAME.yaml."""
    from lakd_ray.cli.experiment_template import render_experiment  # only this command needs it

    file = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not _NAME.fullmatch(file.stem):
        raise ConfigError(
            f"experiment name {file.stem!r}: expected lowercase letters, digits, `.`, `_` and `-`, such as my-corpus"
        )
    codes = [code for code in re.split(r"[,\s]+", languages) if code]
    text = render_experiment(
        file.stem, shlex.quote(str(file)), importer=corpus, root=root, languages=codes, encoder=encoder
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists already: choose a different name, or delete it") from None
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}") from error
    try:
        load_config(file)
    except ConfigError:
        file.unlink()
        raise
    logger.info("wrote %s\nnext: edit the lines marked CHANGE, then run: lakd doctor %s", file, shlex.quote(str(file)))
