"""Paired comparisons between settings on the same test utterances."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lakd_ray import metrics
from lakd_ray.report.aggregate import SeedAggregate, confusions_by_speaker_and_language, restrict_to_shared_utterances
from lakd_ray.report.result_table import format_title


@dataclass(frozen=True)
class PairedDifference:
    """UR of one aggregate minus UR of a second one, as means over languages, seeds and utterances that both have."""

    UR: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval, paired over seeds and speakers; None with fewer than two speakers."""
    seeds: int
    speakers: int


def paired_difference(first: SeedAggregate, second: SeedAggregate, emotions: Sequence[str]) -> PairedDifference | None:
    """Return the paired difference; None if the two have no seed or no utterance in common."""
    seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
    sides = restrict_to_shared_utterances(
        [replace(aggregate, by_seed={seed: aggregate.by_seed[seed] for seed in seeds}) for aggregate in (first, second)]
    )
    if sides is None:
        return None
    confusions = confusions_by_speaker_and_language(sides)
    UR = [
        float(metrics.mean_recall_over_languages(confusion_ASLCC.sum(axis=1)).mean()) for confusion_ASLCC in confusions
    ]
    first_draws, second_draws = map(metrics.bootstrap_over_seeds, confusions)
    interval = None
    if first_draws is not None and second_draws is not None:
        interval = metrics.percentile_interval(first_draws[0] - second_draws[0])
    return PairedDifference(UR[0] - UR[1], interval, len(seeds), confusions[0].shape[1])


def compare_aggregates(
    aggregates: Sequence[SeedAggregate], emotions: Sequence[str], reference_paradigm: str = "mtkd"
) -> list[str]:
    """Compare MTKD with the other paradigms, and every variant with the base settings; one sentence per pair."""
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
    sentences = [
        _describe_difference(first, second, paired_difference(first, second, emotions)) for first, second in pairs
    ]
    if len(sentences) > 1:
        sentences.append(
            f"The 95 % intervals of these {len(sentences)} comparisons are not corrected for multiple comparisons: if "
            "no setting differed, about one in twenty would still exclude zero."
        )
    return sentences


def _describe_difference(first: SeedAggregate, second: SeedAggregate, difference: PairedDifference | None) -> str:
    names = " compared with ".join(
        format_title(aggregate.paradigm, aggregate.setup, aggregate.variant) for aggregate in (first, second)
    )
    if difference is None:
        return f"{names}: no seed or no utterance in common."
    counts = f"{difference.seeds} seed{'s' * (difference.seeds > 1)} and {difference.speakers} speakers"
    points = f"{100 * difference.UR:+.1f} points of UR"
    if difference.interval is None:
        return f"{names}: {points}; no interval, because it needs at least two speakers."
    low, high = (100 * bound for bound in difference.interval)
    verdict = "better" if low > 0 else "worse" if high < 0 else "not significant: the interval includes zero"
    return f"{names}: {points}, paired 95 % interval {low:+.1f} to {high:+.1f} over {counts}; {verdict}."
