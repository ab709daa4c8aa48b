"""How the command line is parsed beyond what typer does: renamed commands, options anywhere, `--set a=1 b=2`."""

import signal
import sys
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from lakd_ray import signals
from lakd_ray.cli.output import print_text
from lakd_ray.errors import LeaseError

RENAMED_COMMANDS = {
    "teachers": "train-teachers",
    "predict-bulk": "predict-batch",
    "disk": "disk-usage",
    "convert": "to-safetensors",
}
RENAMED_OPTIONS = {"--rate": "--throughput"}
RESUME_HINTS = {"serve": "the endpoint is stopped; the same command starts it again"}
GLOBAL_OPTIONS = ("-v", "--verbose", "-q", "--quiet", "--debug")


class LakdGroup(TyperGroup):
    """The group of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options; help shows no type for those without a value."""
        return hide_types_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the global options may also stand after the command."""
        position = args.index("--") if "--" in args else len(args)
        first = [arg for arg in args[:position] if arg in GLOBAL_OPTIONS]
        rest = [arg for arg in args[:position] if arg not in GLOBAL_OPTIONS]
        return super().parse_args(ctx, [*first, *rest, *args[position:]])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; the old name of a command is an error that gives the new one."""
        if args[0] in RENAMED_COMMANDS:
            raise typer.TyperException(f"`lakd {args[0]}` is now `lakd {RENAMED_COMMANDS[args[0]]}`")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a signal ends it with status 128 + its number (Ctrl-C: 130, SIGTERM: 143)."""
        try:
            return super().invoke(ctx)
        except LeaseError:  # the loss of a lease interrupts the command by a signal as well
            raise
        except BaseException as error:
            # a signal can also break something that the command waits for, which then raises its own error
            signum = signals.received() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if signum is None:
                raise
            hint = RESUME_HINTS.get(ctx.invoked_subcommand or "", "run the same command again to resume")
            with suppress(OSError, ValueError):  # a closed terminal
                print_text(f"interrupted ({signal.Signals(signum).name}); {hint}", file=sys.stderr)
            raise typer.Exit(128 + signum) from None


class LakdCommand(TyperCommand):
    """A command whose option `--set` takes several values."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options; help shows no type for options without a value."""
        return hide_types_of_flags(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the old name of an option is an error that gives the new one."""
        for option in args:
            if (name := option.split("=")[0]) in RENAMED_OPTIONS:
                raise typer.TyperException(f"option {name} is now {RENAMED_OPTIONS[name]}")
        return super().parse_args(ctx, split_overrides(args))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line; required arguments stand without braces, as is customary."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class RayCommand(LakdCommand):
    """A command that starts or joins a Ray cluster; log lines of Ray's C++ core are hidden without `--debug`."""


def hide_types_of_flags(parameters: list[Any]) -> list[Any]:
    """Return the parameters; typer would show `<bool>` for options such as `--json`, which take no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def split_overrides(args: list[str]) -> list[str]:
    """Return the arguments with `--set a=1 b=2` written as `--set a=1 --set b=2`."""
    result: list[str] = []
    in_set = False
    for position, arg in enumerate(args):
        if arg == "--set":
            in_set = True
        elif arg.startswith("-"):
            in_set = False
        elif in_set and args[position - 1] != "--set":
            if "=" in arg:
                result.append("--set")
            else:
                in_set = False
        result.append(arg)
    return result
