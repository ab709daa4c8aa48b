"""Paired comparisons between settings on the same test utterances."""

from collections.abc import Collection, Sequence
from typing import Any

from lakd_ray import metrics
from lakd_ray.report.aggregate import (
    SeedAggregate,
    confusions_by_cluster,
    jackknife_over_clusters,
    restrict_to_shared_utterances,
)
from lakd_ray.report.result_table import format_title
from lakd_ray.report.verdicts import build_test, count_of, describe_test


def compare_aggregates(aggregates: Sequence[SeedAggregate], reference_paradigm: str = "mtkd") -> list[dict[str, Any]]:
    """Compare MTKD with the other paradigms, and every variant with the base settings.

    Returns:
        Rows `{first, second, clusters, unit, ...}` of plain JSON types, with the columns of `verdicts`: the difference
        is UR of the first minus UR of the second, as means over languages, seeds and utterances that both have.
    """
    students = [aggregate for aggregate in aggregates if aggregate.is_student]
    base_settings = [aggregate for aggregate in students if aggregate.variant is None] or students
    base = {(aggregate.paradigm, aggregate.setup): aggregate for aggregate in base_settings}
    pairs = [
        (base[reference_paradigm, setup], aggregate)
        for (paradigm, setup), aggregate in base.items()
        if paradigm != reference_paradigm and (reference_paradigm, setup) in base
    ]
    pairs += [
        (aggregate, base[aggregate.paradigm, aggregate.setup])
        for aggregate in students
        if aggregate not in base_settings and (aggregate.paradigm, aggregate.setup) in base
    ]
    languages = set().union(*(aggregate.languages for aggregate in students))
    return [paired_difference(first, second, languages) for first, second in pairs]


def paired_difference(first: SeedAggregate, second: SeedAggregate, languages: Collection[str] = ()) -> dict[str, Any]:
    """Return the row of one pair, which needs utterances in all of the languages."""
    titles = [format_title(side.paradigm, side.setup, side.variant) for side in (first, second)]
    sides = restrict_to_shared_utterances([first, second], languages)
    row: dict[str, Any] = {"first": titles[0], "second": titles[1], "clusters": 0, "unit": "speaker"}
    if sides is None:
        return row | build_test(None, None, 0, "the seeds of both have no test utterances of every language in common")
    seeds = len(sides[0].by_seed)
    confusions = confusions_by_cluster(sides)
    UR = [
        float(metrics.mean_recall_over_languages(confusion_ASLCC.sum(axis=1)).mean()) for confusion_ASLCC in confusions
    ]
    jackknives = [
        jackknife_over_clusters(confusion_ASLCC, metrics.mean_recall_over_languages) for confusion_ASLCC in confusions
    ]
    errors = None
    if jackknives[0] is not None and jackknives[1] is not None:
        errors = (jackknives[0] - jackknives[1]).comparison_errors()
    unit = sides[0].unit
    row |= {"clusters": confusions[0].shape[1], "unit": unit}
    return row | build_test(UR[0] - UR[1], errors, seeds, f"one test {unit} in a language")


def describe_comparison(row: dict[str, Any]) -> str:
    """Describe a comparison in a sentence."""
    names = f"{row['first']} compared with {row['second']}"
    if row["difference"] is None:
        return f"{names}: {row['verdict']}."
    clusters = count_of(row["clusters"], row["unit"])
    counts = clusters if row["seeds"] == 1 else f"{count_of(row['seeds'], 'seed')} and {clusters}"
    return f"{names}: {describe_test(row, counts)}."
