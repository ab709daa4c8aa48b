"""Run the command `lakd` as `python -m lakd_ray`."""

import sys

from lakd_ray.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
