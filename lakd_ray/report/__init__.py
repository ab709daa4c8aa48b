"""The report of an experiment: its test results as report.json and as one self-contained HTML page.

`write_report` covers any number of grid cells (fold, seed, variant); a single fold is a grid of one cell.

To add a value to the rows of the result tables:

1. Add a field to `result_table.ResultRow`, and compute it in `aggregate._build_row`.
2. Show it: `report.html.j2` has the tables of the page (`results` and the headline), `text_report` the table of the
   terminal, `lakd_ray/ops/release/README.md.j2` the table of model cards.
3. Add the key to the list of keys in `tests/report/test_report.py`.

A value that depends on how the model was trained or evaluated is a column of `lakd_ray.data.schema.PREDICTIONS_SCHEMA`
first: `lakd_ray.inference.evaluate` writes it, and `predictions.Predictions` reads it.
"""

from lakd_ray.report.result_table import ResultRow
from lakd_ray.report.text_report import format_summary
from lakd_ray.report.writer import read_report, write_report

__all__ = ["ResultRow", "format_summary", "read_report", "write_report"]
