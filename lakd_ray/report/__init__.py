"""The report of an experiment: its test results as report.json and as one self-contained HTML page.

`write_report` covers any number of grid cells (fold, seed, variant); a single fold is a grid of one cell.
"""

from lakd_ray.report.results import ResultRow
from lakd_ray.report.summary import format_summary
from lakd_ray.report.writer import read_report, write_report

__all__ = ["ResultRow", "format_summary", "read_report", "write_report"]
