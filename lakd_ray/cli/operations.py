"""Commands that look after an experiment: doctor, disk-usage, gc, unlock."""

import json
import sys
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand, RayCommand
from lakd_ray.cli.options import ExperimentArgument, JsonOption, OverridesOption
from lakd_ray.cli.output import print_text
from lakd_ray.config import load_config


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(cls=RayCommand, rich_help_panel=options.OPERATIONS_PANEL)(doctor)
    command = app.command(cls=LakdCommand, rich_help_panel=options.OPERATIONS_PANEL)
    command(disk_usage)
    command(gc)
    command(unlock)


def doctor(experiment: ExperimentArgument, overrides: OverridesOption = None, as_json: JsonOption = False) -> int:
    """Check this machine, the storage and the cluster before an experiment starts.

    Exit status 2: a check failed.
    """
    config = load_config(experiment, overrides or ())
    from lakd_ray.ops import doctor as checks  # Ray takes seconds to load

    results = checks.run_all_checks(config)
    healthy = all(result.status != "fail" for result in results)
    if as_json:
        print_text(json.dumps({"ok": healthy, "checks": [result.to_json() for result in results]}, indent=1))
    else:
        print_text(checks.format_table(results))
    return 0 if healthy else 2


def disk_usage(experiment: ExperimentArgument, overrides: OverridesOption = None, as_json: JsonOption = False) -> None:
    """Show the disk space that an experiment uses now, and estimate what it needs until it is finished."""
    config = load_config(experiment, overrides or ())
    from lakd_ray.ops import disk_usage as disk  # torch takes seconds to load

    usage = disk.estimate_usage(config)
    print_text(json.dumps(usage.to_json(), indent=1) if as_json else disk.format_usage(usage))


def gc(
    experiment: ExperimentArgument,
    overrides: OverridesOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without a confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files only.")] = False,
) -> int:
    """Delete files of an experiment that are no longer needed, and temporary files that killed processes have left."""
    config = load_config(experiment, overrides or ())
    from lakd_ray import scratch, storage
    from lakd_ray.ops import garbage  # torch takes seconds to load

    report, leftovers = garbage.find_garbage(config), scratch.find_leftovers()
    print_text(garbage.format_report(report))
    for leftover in leftovers:
        print_text(f"{storage.format_bytes(leftover.size):>10}  {leftover.path}: {leftover.reason}, on this machine")
    if dry_run or not (report.items or leftovers):
        return 0
    if not yes and not sys.stdin.isatty():
        print_text("nothing was deleted: add --yes, or run this in a terminal for a confirmation", file=sys.stderr)
        return 1
    if not yes and input("Delete all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        print_text("nothing was deleted")
        return 0
    freed = garbage.delete_garbage(config, report) if report.items else 0
    print_text(f"freed {storage.format_bytes(freed + (scratch.remove_leftovers() if leftovers else 0))}")
    return 0


def unlock(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of an experiment or of predictions, as the error message prints it.",
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Unlock without a confirmation.")] = False,
) -> int:
    """Take a folder away from the process that works on it, which can then no longer write there.

    Needed only if that process hangs or its machine is cut off: one that has ended holds nothing.
    """
    from lakd_ray import storage  # pyarrow takes a second to load

    holder = storage.last_holder(folder)
    if holder is None or holder.status == "free":
        print_text(f"no process works on {folder}")
        return 0
    print_text(f"{folder} is in use by {holder.describe()}")
    if not yes and not sys.stdin.isatty():
        print_text("nothing was changed: add --yes, or run this in a terminal for a confirmation", file=sys.stderr)
        return 1
    if not yes and input("Take it away? That process ends. [y/N] ").strip().lower() not in (
        "y",
        "yes",
    ):
        print_text("nothing was changed")
        return 0
    storage.end_lease(folder)
    print_text("unlocked")
    return 0
