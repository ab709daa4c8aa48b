"""Tests of paired differences, and the verdicts that a report draws from all of them together.

A row of a test has the keys

    difference      first minus second, as the mean over seeds
    interval        its 95 % interval; null where the data shows no variation
    seeds           number of seeds that both have
    p_value         two-sided, of this row alone; null below `MIN_SEEDS` seeds and without an interval
    p_adjusted      the same, adjusted by Holm's method for all tests of the report
    verdict         better, worse, undecided, or `no verdict: ` with the reason
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lakd_ray.statistics import MIN_SEEDS, SIGNIFICANCE, StandardErrors, describe_p, holm, interval

TEST_COLUMNS = ("difference", "interval", "seeds", "p_value", "p_adjusted", "verdict")
_FEW_SEEDS = {1: "one seed", 2: "two seeds"}


def build_test(difference: float | None, errors: StandardErrors | None, seeds: int, missing: str) -> dict[str, Any]:
    """Return the columns of a test, whose verdict `decide` completes.

    Args:
        difference: mean over the seeds, a difference of two shares; None if nothing can be compared.
        errors: standard errors of the difference, None without an interval.
        seeds: number of seeds.
        missing: why there is no difference or no interval.
    """
    row: dict[str, Any] = {
        "difference": difference, "interval": None, "seeds": seeds, "p_value": None, "p_adjusted": None,
        "verdict": f"no verdict: {missing if difference is None else _FEW_SEEDS.get(seeds, missing)}",
    }  # fmt: skip
    if difference is None or errors is None:
        return row
    bounds = interval(difference, errors, (-1, 1))
    if bounds is None:
        return row | {"verdict": "no verdict: no variation over seeds and speakers"}
    row["interval"] = list(bounds)
    if seeds >= MIN_SEEDS:
        row["p_value"] = float(errors.p_value(np.asarray(difference)))
    return row


def decide(rows: Sequence[dict[str, Any]]) -> None:
    """Adjust the p-values of all tests of a report together, and set the verdicts."""
    for row, p_adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_adjusted"] = p_adjusted
        if p_adjusted is not None:
            decided = "better" if row["difference"] > 0 else "worse"
            row["verdict"] = decided if p_adjusted < SIGNIFICANCE else "undecided"


def describe_test(row: dict[str, Any], counts: str) -> str:
    """Describe a test in the second half of a sentence.

    Args:
        row: columns of `build_test`, after `decide`.
        counts: what the interval is over, such as `3 seeds and 12 speakers`.
    """
    text = f"{100 * row['difference']:+.1f} points of UR"
    if row["interval"] is not None:
        low, high = (100 * bound for bound in row["interval"])
        text += f", 95 % interval {low:+.1f} to {high:+.1f} over {counts}"
    p = "" if row["p_adjusted"] is None else f" ({describe_p(row['p_adjusted'])})"
    return f"{text}; {row['verdict']}{p}"


def adjustment_note(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Explain the p-values and the rule of the verdicts, if a report has tests."""
    if not rows:
        return []
    tests = sum(row["p_value"] is not None for row in rows)
    rule = f"Comparisons have a verdict from {MIN_SEEDS} seeds on, if seeds and test speakers agree"
    if not tests:
        return [f"{rule}; with fewer seeds, a difference may be one of the seeds alone."]
    count = "the one comparison" if tests == 1 else f"the {tests} comparisons"
    return [
        f"{rule}. p-values are adjusted for {count} of this report, on dev and on test (Holm): settings that do not "
        "differ are distinguished in at most 5 % of reports."
    ]


def count_of(number: int, noun: str) -> str:
    """Return a number with a noun in singular or plural, such as `3 seeds`."""
    return f"{number} {noun}{'s' * (number != 1)}"
