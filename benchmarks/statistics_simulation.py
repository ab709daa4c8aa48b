"""How often the report's intervals cover the true UR and its comparisons decide by chance, measured by simulation.

    python benchmarks/statistics_simulation.py [--replications 2000] [--small]

It draws test results of models with a known UR, computes intervals and tests with `lakd_ray.statistics`, as reports do,
and prints Markdown tables. `docs/explanation/statistics.md` has its output. One core takes some minutes.

An utterance is correct if a normal variable exceeds zero (a probit model). Its mean is the class's level plus, all
normal: the speaker's difficulty and bias for each class, the seed's strength and bias for each class, and an
interaction of seed, speaker and class. Part of the remaining variation belongs to the utterance and is the same for all
seeds and models. The true UR then has a closed form. Components that vary with the speaker or the seed are stated for
each scenario, and the first table has the spread of UR that results from them.

Shapes: R replications, A seeds, S speakers, L languages, C classes, M models, D bootstrap draws.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from lakd_ray.metrics import unweighted_recall
from lakd_ray.statistics import MIN_SEEDS, Jackknife, StandardErrors, holm, jackknife, standard_error_over_seeds

Array = npt.NDArray[Any]

RECALLS = (0.75, 0.45, 0.65, 0.75)  # of the classes in the first language; other languages have them rotated, 5 lower
UTTERANCE_SHARE = 0.6  # of the residual variance, which belongs to the utterance and is the same for all models
DRAWS = 400  # of the bootstrap


@dataclass(frozen=True)
class Scenario:
    """Components of the variation, as standard deviations on the probit scale, and the numbers of utterances."""

    name: str
    speaker: float = 0.13
    speaker_class: float = 0.32
    seed: float = 0.03
    seed_class: float = 0.05
    interaction: float = 0.14
    setting_speaker: float = 0.0
    """Of a model setting and a speaker's class: settings that suit different speakers, with every seed."""
    utterances: tuple[int, ...] = (40,)
    """Mean number per speaker, by language."""
    unbalanced: float = 0.0
    """Standard deviation of the logarithm of the number of utterances of a speaker; 0: all have the same number."""
    class_shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)

    @property
    def speaker_variance(self) -> float:
        """Variance of all components of a speaker's class that differ between speakers."""
        components = (self.speaker, self.speaker_class, self.interaction, self.setting_speaker)
        return sum(component**2 for component in components)

    def level_LC(self) -> Array:
        """Return the levels of the classes on the probit scale."""
        L = len(self.utterances)
        return np.stack([ndtri(np.roll(RECALLS, language) - 0.05 * language) for language in range(L)])


TYPICAL = Scenario("typical, balanced")
UNBALANCED = Scenario("unbalanced speakers and classes", unbalanced=0.6, class_shares=(0.15, 0.20, 0.40, 0.25))
LANGUAGES = replace(UNBALANCED, name="three languages, unbalanced", utterances=(20, 40, 60))
DIFFERENT_SEEDS = replace(TYPICAL, name="different seeds", seed=0.06, seed_class=0.12)
SCENARIOS = (
    TYPICAL,
    UNBALANCED,
    replace(TYPICAL, name="similar speakers", speaker=0.06, speaker_class=0.15, interaction=0.07),
    replace(UNBALANCED, name="different speakers, unbalanced", speaker=0.25, speaker_class=0.5),
    replace(UNBALANCED, name="very unbalanced, a rare class", unbalanced=1.0, class_shares=(0.05, 0.15, 0.50, 0.30)),
    DIFFERENT_SEEDS,
    LANGUAGES,
)


@dataclass(frozen=True)
class Draw:
    """Simulated results: confusion matrices, and what a model's UR is for its seeds."""

    confusion_MASRCC: Array
    strata: list[str]
    true_R: Array
    """True UR of the first model: over the speakers with one seed, over seeds and speakers with several."""


def draw(
    scenario: Scenario,
    random: np.random.Generator,
    *,
    replications: int,
    speakers: int,
    seeds: int,
    gains: Sequence[float] = (0.0,),
) -> Draw:
    """Draw the results of models on the same speakers and utterances.

    Args:
        scenario: components of the variation.
        random: source of random numbers.
        replications: number of independent experiments.
        speakers: number of test speakers in each language.
        seeds: number of training seeds.
        gains: strength of each model on the probit scale, relative to the first.
    """
    A, R, level_LC = seeds, replications, scenario.level_LC()
    language_S = np.repeat(np.arange(len(level_LC)), speakers)
    S, C = len(language_S), level_LC.shape[1]
    truths_SRC = _draw_counts(scenario, random, language_S, R)
    speaker_SRC = level_LC[language_S][:, None] + random.normal(0, scenario.speaker, (S, R, 1))
    speaker_SRC = speaker_SRC + random.normal(0, scenario.speaker_class, (S, R, C))
    utterances = [random.standard_normal((S, R, truths_SRC[..., c].max()), dtype=np.float32) for c in range(C)]
    confusion_MASRCC = np.zeros((len(gains), A, S, R, C, C), dtype=np.int32)
    first_seed_RC = np.zeros((R, C))
    for model, gain in enumerate(gains):
        own_SRC = speaker_SRC + random.normal(0, scenario.setting_speaker, (S, R, C))
        for seed in range(A):
            seed_RC = random.normal(0, scenario.seed, (R, 1)) + random.normal(0, scenario.seed_class, (R, C))
            mean_SRC = own_SRC + gain + seed_RC + random.normal(0, scenario.interaction, (S, R, C))
            for c in range(C):
                hits_SR = _draw_hits(random, mean_SRC[..., c], utterances[c], truths_SRC[..., c])
                confusion_MASRCC[model, seed, ..., c, c] = hits_SR
                confusion_MASRCC[model, seed, ..., c, (c + 1) % C] = truths_SRC[..., c] - hits_SR
            if model == seed == 0:
                first_seed_RC = seed_RC
    true_R = true_recall(scenario, first_seed_RC) if A == 1 else np.full(R, true_recall(scenario))
    return Draw(confusion_MASRCC, [str(language) for language in language_S], true_R)


def _draw_counts(scenario: Scenario, random: np.random.Generator, language_S: Array, R: int) -> Array:
    """Draw the numbers of utterances of each speaker and class, at least four per speaker."""
    mean_S1 = np.array(scenario.utterances)[language_S][:, None]
    shares_C = np.array(scenario.class_shares)
    if not scenario.unbalanced:
        fixed_SRC = np.broadcast_to(mean_S1[..., None] * shares_C, (len(language_S), R, len(shares_C)))
        return fixed_SRC.round().astype(np.int64)
    deviation = scenario.unbalanced
    factor_SR = random.lognormal(-(deviation**2) / 2, deviation, (len(language_S), R))  # its mean is one
    total_SR = 4 + np.round((mean_S1 - 4) * factor_SR).astype(np.int64)
    return random.multinomial(total_SR, random.dirichlet(20 * shares_C, (len(language_S), R)))


def _draw_hits(random: np.random.Generator, mean_SR: Array, utterance_SRN: Array, truths_SR: Array) -> Array:
    """Draw the numbers of correct utterances; the part of the variation that belongs to the utterance is given."""
    own_SRN = random.standard_normal(utterance_SRN.shape, dtype=np.float32)
    noise_SRN = np.sqrt(UTTERANCE_SHARE) * utterance_SRN + np.sqrt(1 - UTTERANCE_SHARE) * own_SRN
    exists_SRN = np.arange(utterance_SRN.shape[-1]) < truths_SR[..., None]
    return ((noise_SRN < mean_SR[..., None]) & exists_SRN).sum(axis=-1)


def true_recall(scenario: Scenario, seed_RC: Array | None = None, gain: float = 0.0) -> Array:
    """Return UR over the population of speakers, for given effects of the seed or as the mean over all seeds."""
    seed_variance = scenario.seed**2 + scenario.seed_class**2 if seed_RC is None else 0.0
    scale = np.sqrt(1 + scenario.speaker_variance + seed_variance)
    effect_RLC = scenario.level_LC() + gain + (0.0 if seed_RC is None else seed_RC[:, None])
    weights_L = np.array(scenario.utterances) / sum(scenario.utterances)
    recall_C = (ndtr(effect_RLC / scale) * weights_L[:, None]).sum(axis=-2)
    return np.asarray(recall_C.mean(axis=-1))


def jackknives(drawn: Draw) -> list[Jackknife]:
    """Return the jackknife of each model's UR."""
    found = [jackknife(confusion_ASRCC, unweighted_recall, drawn.strata) for confusion_ASRCC in drawn.confusion_MASRCC]
    return [model for model in found if model is not None]


def bootstrap_intervals(random: np.random.Generator, drawn: Draw, limit: int) -> tuple[Array, Array, Array]:
    """Return the percentile bootstrap of UR over speakers and seeds in the first replications: bounds and estimate.

    With two models it is the bootstrap of their paired difference.
    """
    confusion_MASRCC = drawn.confusion_MASRCC[:, :, :, :limit]
    A, S = confusion_MASRCC.shape[1:3]
    times_DS = random.multinomial(S, np.full(S, 1 / S), DRAWS).astype(np.float32)
    times_DA = random.multinomial(A, np.full(A, 1 / A), DRAWS) / A
    UR_DR = np.zeros((DRAWS, confusion_MASRCC.shape[3]))
    estimate_R = np.zeros(confusion_MASRCC.shape[3])
    for sign, confusion_ASRCC in zip((1, -1), confusion_MASRCC, strict=False):
        estimate_R += sign * unweighted_recall(confusion_ASRCC.sum(axis=1)).mean(axis=0)
        for seed, confusion_SRCC in enumerate(confusion_ASRCC):
            drawn_DRCC = np.tensordot(times_DS, confusion_SRCC.astype(np.float32), axes=1)
            UR_DR += sign * times_DA[:, seed, None] * unweighted_recall(drawn_DRCC)
    low_R, high_R = np.quantile(UR_DR, [0.025, 0.975], axis=0)
    return low_R, high_R, estimate_R


def spread_table(random: np.random.Generator, replications: int) -> Iterator[str]:
    """Print the spread of UR between speakers and between seeds, in points."""
    yield "| scenario | UR | SD between speakers | SD between seeds | SD of one speaker's UR between seeds |"
    yield "|---|---|---|---|---|"
    for scenario in SCENARIOS:
        effects_SC = random.normal(0, scenario.speaker, (replications, 1))
        effects_SC = effects_SC + random.normal(0, scenario.speaker_class, (replications, len(RECALLS)))
        seeds_AC = random.normal(0, scenario.seed, (replications, 1))
        seeds_AC = seeds_AC + random.normal(0, scenario.seed_class, (replications, len(RECALLS)))
        level_C = scenario.level_LC()[0]
        inner = np.sqrt(1 + scenario.interaction**2)
        speakers = ndtr((level_C + effects_SC) / inner).mean(axis=-1).std()
        seeds = true_recall(scenario, seeds_AC).std()
        noise_C = random.normal(0, scenario.interaction, (replications, len(RECALLS)))
        interaction = ndtr(level_C + noise_C).mean(axis=-1).std()
        values = " | ".join(f"{100 * value:.1f}" for value in (true_recall(scenario), speakers, seeds, interaction))
        yield f"| {scenario.name} | {values} |"


def coverage_table(
    random: np.random.Generator, replications: int, scenario: Scenario, speakers: Sequence[int], seeds: Sequence[int]
) -> Iterator[str]:
    """Print the coverage of the nominal 95 % interval, and that of the percentile bootstrap in parentheses."""
    unit = "speakers" if len(scenario.utterances) == 1 else "speakers per language"
    yield f"| {unit} | " + " | ".join(f"{A} seed{'s' * (A > 1)}" for A in seeds) + " |"
    yield "|---" * (len(seeds) + 1) + "|"
    for S in speakers:
        cells = []
        for A in seeds:
            drawn = draw(scenario, random, replications=replications, speakers=S, seeds=A)
            (model,) = jackknives(drawn)
            covered = np.abs(model.estimate - drawn.true_R) <= model.standard_errors().half_width()
            low_R, high_R, _ = bootstrap_intervals(random, drawn, replications // 2)
            true_R = drawn.true_R[: len(low_R)]
            old = (low_R <= true_R) & (true_R <= high_R)
            cells.append(f"{100 * covered.mean():.1f} ({100 * old.mean():.0f})")
        yield f"| {S} | " + " | ".join(cells) + " |"


def adjusted_decisions(p_values_KR: Array) -> Array:
    """Return where Holm's adjusted p-values of K comparisons decide, shape [K, R]."""
    adjusted = [holm(p_K.tolist()) for p_K in p_values_KR.T]
    return np.array([[p is not None and p < 0.05 for p in p_K] for p_K in adjusted]).T


def comparison_p_values(drawn: Draw) -> Array:
    """Return the p-value of each other model against the first."""
    first, *others = jackknives(drawn)
    differences = [other - first for other in others]
    return np.stack([pair.comparison_errors().p_value(pair.estimate) for pair in differences])


def false_decision_table(
    random: np.random.Generator, replications: int, cells: Sequence[tuple[int, int]]
) -> Iterator[str]:
    """Print how often settings without a difference are decided, per pair and in any of five comparisons."""
    yield (
        "| speakers | seeds | scenario | per pair, before Holm | per pair | any of five | bootstrap, per pair | "
        "bootstrap, any of five |"
    )
    yield "|---" * 8 + "|"
    scenarios = (
        TYPICAL,
        UNBALANCED,
        DIFFERENT_SEEDS,
        replace(TYPICAL, name="settings that suit different speakers", setting_speaker=0.2),
    )
    for (S, A), scenario in itertools.product(cells, scenarios):
        drawn = draw(scenario, random, replications=replications, speakers=S, seeds=A, gains=[0.0] * 6)
        old_KR = np.stack([_bootstrap_decides(random, drawn, other, replications // 4) for other in range(1, 6)])
        new = ["none"] * 3
        if A >= MIN_SEEDS:
            p_KR = comparison_p_values(drawn)
            decided_KR = adjusted_decisions(p_KR)
            new = [_percent(p_KR < 0.05), _percent(decided_KR), _percent(decided_KR.any(axis=0))]
        values = [*new, _percent(old_KR), _percent(old_KR.any(axis=0))]
        yield f"| {S} | {A} | {scenario.name} | " + " | ".join(values) + " |"


def _bootstrap_decides(random: np.random.Generator, drawn: Draw, other: int, limit: int) -> Array:
    pair = replace(drawn, confusion_MASRCC=drawn.confusion_MASRCC[[other, 0]])
    low_R, high_R, _ = bootstrap_intervals(random, pair, limit)
    return (low_R > 0) | (high_R < 0)


def _percent(decided: Array) -> str:
    return f"{100 * decided.mean():.1f}"


def power_table(
    random: np.random.Generator, replications: int, cells: Sequence[tuple[int, int]], points: Sequence[int] = (2, 5, 10)
) -> Iterator[str]:
    """Print how often a real difference is decided correctly, as one comparison and as one of five."""
    yield "| speakers | seeds | " + " | ".join(f"{gain} points, alone | one of five" for gain in points) + " |"
    yield "|---" * (2 + 2 * len(points)) + "|"
    for S, A in cells:
        values = []
        for gain in points:
            gains = [0.0, _gain_of(TYPICAL, gain / 100), 0.0, 0.0, 0.0, 0.0]
            drawn = draw(TYPICAL, random, replications=replications, speakers=S, seeds=A, gains=gains)
            first, second = jackknives(drawn)[:2]
            p_KR = comparison_p_values(drawn)
            right_R = (second - first).estimate > 0
            values += [_percent((p_KR[0] < 0.05) & right_R), _percent(adjusted_decisions(p_KR)[0] & right_R)]
        yield f"| {S} | {A} | " + " | ".join(values) + " |"


def _gain_of(scenario: Scenario, difference: float) -> float:
    """Return the strength that raises UR by a difference."""
    strengths = np.linspace(0, 2, 2001)
    reached = np.array([true_recall(scenario, gain=strength) for strength in strengths]) - true_recall(scenario)
    return float(np.interp(difference, reached, strengths))


def search_table(
    random: np.random.Generator, replications: int, seeds: Sequence[int], candidates: Sequence[int]
) -> Iterator[str]:
    """Print how often the best of equal trials is found to beat the paper's settings, over reevaluation seeds."""
    yield "| reevaluated trials | seeds | t test over seeds with Holm | bootstrap over seeds |"
    yield "|---|---|---|---|"
    for K, A in itertools.product(candidates, seeds):
        values_KAR = random.normal(0.6, 0.02, (K + 1, A, replications))
        differences_KAR = values_KAR[1:] - values_KAR[0]
        best_R = differences_KAR.mean(axis=1).argmax(axis=0)
        times_DA = random.multinomial(A, np.full(A, 1 / A), DRAWS) / A
        best_AR = differences_KAR[best_R, :, np.arange(replications)].T
        old_R = np.quantile(times_DA @ best_AR, 0.025, axis=0) > 0 if A > 1 else np.zeros(replications, dtype=bool)
        new = "none"
        if A >= MIN_SEEDS:
            errors = [standard_error_over_seeds(own_AR) for own_AR in differences_KAR]
            p_KR = np.stack(list(map(_seed_p_value, errors, differences_KAR)))
            decided_KR = adjusted_decisions(p_KR) & (differences_KAR.mean(axis=1) > 0)
            new = _percent(decided_KR[best_R, np.arange(replications)])
        yield f"| {K} | {A} | {new} | {_percent(old_R)} |"


def _seed_p_value(errors: StandardErrors, differences_AR: Array) -> Array:
    return errors.p_value(differences_AR.mean(axis=0))


def print_tables(replications: int, small: bool) -> None:
    """Print all tables."""
    random = np.random.default_rng(0)
    speakers, seeds = ((2, 10), (1, 3)) if small else ((2, 3, 5, 10, 20, 40), (1, 2, 3, 5, 10))
    cells = [(10, 3)] if small else [(2, 3), (3, 3), (5, 3), (10, 1), (10, 2), (10, 3), (10, 5), (20, 3)]
    sections: list[tuple[str, Iterator[str]]] = [("Spread of UR, in points", spread_table(random, 20 * replications))]
    for scenario in SCENARIOS:
        sizes = [S for S in speakers if len(scenario.utterances) == 1 or S <= 10]
        sections.append((f"Coverage: {scenario.name}", coverage_table(random, replications, scenario, sizes, seeds)))
    powerful = [cell for cell in cells if cell[1] >= MIN_SEEDS]
    sections += [
        ("False decisions", false_decision_table(random, replications, cells)),
        ("Power", power_table(random, replications, powerful)),
        ("False decisions of a search", search_table(random, replications, seeds[1:], (1, 3, 5))),
    ]
    print(f"{replications} replications; all values but the first table's are percentages.")
    for title, lines in sections:
        print(f"\n### {title}\n", *lines, sep="\n", flush=True)


def main() -> None:
    """Run the simulation from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=2000, help="simulated experiments per cell")
    parser.add_argument("--small", action="store_true", help="few cells and 100 replications, to test the simulation")
    arguments = parser.parse_args()
    print_tables(100 if arguments.small else arguments.replications, arguments.small)


if __name__ == "__main__":
    main()
