"""Define the application `lakd` with its entry points, global options and exit status."""

import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, cast

import typer

from lakd_ray import __version__, environment, signals
from lakd_ray.cli import configuration, data, models, operations, stages
from lakd_ray.cli.group import LakdGroup, RayCommand
from lakd_ray.cli.logging import hide_ray_core_lines, log_level, log_to_console, print_message, silence_libraries
from lakd_ray.cli.output import print_text
from lakd_ray.errors import LakdError
from lakd_ray.storage.disk_space import find_full_disk

app = typer.Typer(
    name="lakd",
    cls=LakdGroup,
    help="Multilingual speech emotion recognition by language-aware knowledge distillation from several teachers.",
    epilog="-v, -q and --debug can also stand after the command. Start with: lakd pipeline demo",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    pretty_exceptions_enable=False,
)
for module in (stages, data, models, operations, configuration):
    module.register(app)


def _print_version(value: bool) -> None:
    if value:
        print_text(f"lakd-ray {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also print debug messages.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print warnings, errors and results only.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error, and all messages of Ray.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if verbose and quiet:
        raise typer.BadParameter("give either -v or -q, not both")
    silence_libraries()
    command = cast(LakdGroup, context.command).get_command(context, context.invoked_subcommand or "")
    if not debug and isinstance(command, RayCommand):
        context.with_resource(hide_ray_core_lines())
    context.with_resource(log_to_console(log_level(verbose, quiet)))
    context.with_resource(environment.prepared())


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lakd` with the given arguments and return the exit status.

    0: success; 1: some results are missing, or the reader of a pipe ended; 2: an error that the message explains;
    128 + N: interrupted by signal N (130: Ctrl-C, 143: SIGTERM).
    """
    with signals.interruptible():
        return _run_command(list(sys.argv[1:] if argv is None else argv))


def _run_command(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    if not arguments:
        command.main(["--help"], prog_name="lakd", standalone_mode=False)
        return 2
    try:
        status = command.main(arguments, prog_name="lakd", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:
        _print_usage_error(error)
        return 2
    except (KeyboardInterrupt, typer.Abort):  # before the command has started
        signum = signals.received() or signal.SIGINT
        print_message("interrupted", f"({signal.Signals(signum).name}); nothing was started")
        return 128 + signum
    except Exception as error:
        explained = error if isinstance(error, LakdError) else find_full_disk(error)
        if explained is None:
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        print_message("error:", error_message(explained))
        return 2
    except SystemExit as end:  # of typer: 0 after a completion script, 1 if the reader of a pipe ends, as `| head` does
        return end.code if isinstance(end.code, int) else 1


def error_message(error: LakdError) -> str:
    """Return the message of an error; one from a worker has a traceback in its text, and its cause does not."""
    return str(getattr(error, "cause", None) or error)


def _print_usage_error(error: typer.TyperException) -> None:
    context = getattr(error, "ctx", None)
    if context is not None:
        print_text(context.get_usage(), file=sys.stderr)
    print_message("error:", error.format_message())
    if context is not None:
        print_text(f"try: {context.command_path} --help", file=sys.stderr)
