"""`python -m lakd_ray` is the command `lakd`."""

import sys

from lakd_ray.cli import main

sys.exit(main())
