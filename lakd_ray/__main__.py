"""The process of `lakd`, of `python -m lakd_ray` and of the scripts in jobs/: signals count from its first moment."""

import sys
from collections.abc import Sequence

from lakd_ray import signals


def run(argv: Sequence[str] | None = None) -> None:
    """Run `lakd` with the given arguments, by default those of the process, and exit with its status."""
    with signals.interruptible():
        try:
            from lakd_ray.cli.main import main  # takes a second to load, in which a signal can arrive

            status = main(argv)
        except signals.Interrupted as interruption:
            print(f"interrupted ({interruption}); nothing was started", file=sys.stderr)
            status = 128 + interruption.signum
        if status > 128:
            signals.exit_now(status)
    sys.exit(status)


def run_job(command: str) -> None:
    """Run a command with the arguments of the process and exit with its status: the scripts in jobs/ call this."""
    run([command, *sys.argv[1:]])


if __name__ == "__main__":
    run()
