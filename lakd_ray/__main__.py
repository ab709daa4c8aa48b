"""`python -m lakd_ray` is the command `lakd`."""

import sys

from lakd_ray.cli.main import main

sys.exit(main())
