"""Commands that look after an experiment: doctor, disk-usage, gc."""

import json
import sys
from typing import Annotated

import typer

from lakd_ray.cli import options
from lakd_ray.cli.group import LakdCommand, RayCommand
from lakd_ray.cli.options import ExperimentArgument, JsonOption, OverridesOption
from lakd_ray.config import load_config


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(cls=RayCommand, rich_help_panel=options.OPERATIONS_PANEL)(doctor)
    command = app.command(cls=LakdCommand, rich_help_panel=options.OPERATIONS_PANEL)
    command(disk_usage)
    command(gc)


def doctor(experiment: ExperimentArgument, overrides: OverridesOption = None, as_json: JsonOption = False) -> int:
    """Check this machine, the storage and the cluster before an experiment starts.

    Exit status 2: a check failed.
    """
    config = load_config(experiment, overrides or ())
    from lakd_ray.ops import doctor as checks  # Ray takes seconds to load

    results = checks.run_all_checks(config)
    healthy = all(result.status != "fail" for result in results)
    if as_json:
        print(json.dumps({"ok": healthy, "checks": [result.to_json() for result in results]}, indent=1))
    else:
        print(checks.format_table(results))
    return 0 if healthy else 2


def disk_usage(experiment: ExperimentArgument, overrides: OverridesOption = None, as_json: JsonOption = False) -> None:
    """Show the disk space that an experiment uses now, and estimate what it needs until it is finished."""
    config = load_config(experiment, overrides or ())
    from lakd_ray.ops import disk_usage as disk  # torch takes seconds to load

    usage = disk.estimate_usage(config)
    print(json.dumps(usage.to_json(), indent=1) if as_json else disk.format_usage(usage))


def gc(
    experiment: ExperimentArgument,
    overrides: OverridesOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without a confirmation.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files only.")] = False,
) -> int:
    """Delete files of an experiment that are no longer needed."""
    config = load_config(experiment, overrides or ())
    from lakd_ray import storage
    from lakd_ray.ops import garbage  # torch takes seconds to load

    report = garbage.find_garbage(config)
    print(garbage.format_report(report))
    if dry_run or not report.items:
        return 0
    if not yes and not sys.stdin.isatty():
        print("nothing was deleted: add --yes, or run this in a terminal for a confirmation", file=sys.stderr)
        return 1
    if not yes and input("Delete all of it? [y/N] ").strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return 0
    print(f"freed {storage.format_bytes(garbage.delete_garbage(config, report))}")
    return 0
