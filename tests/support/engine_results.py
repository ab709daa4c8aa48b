"""The results that the ranks of `engine_worker` compute, as stored for the tests of engines and of the trainer."""

from dataclasses import dataclass, field

from torch import Tensor

from lakd_ray.runs.state import RunState

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TrainingResult:
    """Ten optimizer steps."""

    losses: list[float]
    middle_weights: Weights
    """After five steps."""
    final_weights: Weights
    learning_rates: list[float]
    """Before the first and before the sixth step."""
    logits: Tensor
    """Of a fixed batch after the last step."""


@dataclass(frozen=True)
class StepsResult:
    """A few optimizer steps and the state after them."""

    losses: list[float]
    weights: Weights
    learning_rate: float


@dataclass(frozen=True)
class ResumeResult:
    """Three steps, and three more steps without and with an interruption in between."""

    first_losses: list[float]
    uninterrupted: StepsResult
    resumed: StepsResult


@dataclass(frozen=True)
class AveragingResult:
    """Three steps with averaged weights."""

    step_weights: list[Weights]
    eval_weights: Weights
    """In eval mode."""
    weights_after_eval: Weights
    saved_average: Weights
    restored_average: Weights
    """After the state was saved and loaded."""


@dataclass(frozen=True)
class HalfPrecisionAveraging:
    """Three steps in bf16 with averaged weights."""

    step_weights: list[Weights]
    """The fp32 weights that the optimizer updates, before the first and after each step."""
    eval_weights: Weights
    """The model's own, in eval mode."""
    weights_after_eval: Weights
    saved_average: Weights
    restored_average: Weights
    """After the state was saved and loaded."""


@dataclass(frozen=True)
class OverflowResult:
    """Three steps in fp16, the second with an infinite gradient on one of two ranks, as one rank sees them."""

    scales: list[float]
    """Loss scale after each step."""
    weights: list[Weights]
    """After each step."""


@dataclass(frozen=True)
class TrainedRun:
    """A run of the trainer, to its end."""

    rows: list[int]
    """Rows trained on by this rank since the last start, in order."""
    state: RunState
    weights: Weights
    """Of the best checkpoint."""
    files: list[str]
    """Names in the run's folder."""
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KilledRun:
    """A run of the trainer that was killed once and then trained to its end."""

    rows_before: list[int]
    """Rows trained on before it was killed."""
    saved_state: RunState
    finished: TrainedRun


@dataclass(frozen=True)
class TrainerResults:
    """The runs of `loop_scenario` as one of two ranks sees them."""

    uninterrupted: TrainedRun
    killed: dict[tuple[int | None, int], KilledRun]
    """By the entries of `loop_scenario.KILLS`."""
    from_waves: TrainedRun
    from_features: TrainedRun


@dataclass(frozen=True)
class OneRankResults:
    """The results of a single rank; dictionaries are by ZeRO stage or by name of the engine."""

    by_zero_stage: dict[int, TrainingResult]
    language_aware: dict[int, TrainingResult]
    accumulated: TrainingResult
    gradient_checkpointing: TrainingResult
    averaging: AveragingResult
    long_losses: dict[str, list[float]]
    resumed_from_two_ranks: dict[str, StepsResult]
    run_resumed_from_two_ranks: TrainedRun
    alive_after_close: dict[str, list[str]]
    """By name of the engine: what is still referenced after `Engine.close` and a garbage collection."""
    average_of_two_ranks: Weights
    """Averaged weights from the state of `TwoRankResults.half_precision_averaging`, ZeRO stage 2."""


@dataclass(frozen=True)
class TwoRankResults:
    """The results of two ranks; dictionaries are by name of the engine."""

    unequal: TrainingResult
    """Ranks with four and two utterances in each step."""
    accumulated: TrainingResult
    language_aware: TrainingResult
    resumed: ResumeResult
    resumed_frozen: ResumeResult
    """With a frozen feature encoder."""
    long_losses: dict[str, list[float]]
    uninterrupted: dict[str, StepsResult]
    """What a single rank should reach from the same state: see `OneRankResults.resumed_from_two_ranks`."""
    runs_by_rank: list[TrainerResults]
    short_utterance: dict[str, StepsResult]
    """Steps in which the utterance of one rank is too short to use all weights."""
    overflow_by_rank: list[OverflowResult]
    half_precision_averaging: dict[int, HalfPrecisionAveraging]
    """By ZeRO stage."""


@dataclass(frozen=True)
class EngineResults:
    """The results of both world sizes on the same data."""

    one_rank: OneRankResults
    two_ranks: TwoRankResults
