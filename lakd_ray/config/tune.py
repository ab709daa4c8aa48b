"""The section of the search: what is varied, how it is chosen, when trials are stopped, what counts."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section

_SEARCHABLE_PREFIXES = ("student.", "distill.kd.", "distill.mtkd.")
_FIXED_KEYS = ("student.optim.epochs", "student.model.pretrained")


class Dimension(Section):
    """What one setting may be: a range, or some values."""

    low: float | None = None
    """Smallest value of a range."""
    high: float | None = None
    """Largest value of a range."""
    log: bool = False
    """Draw on a log scale."""
    integer: bool = False
    """Whole numbers alone."""
    choices: tuple[Any, ...] = ()
    """Values, instead of a range."""
    conditions: dict[str, tuple[Any, ...]] = Field({})
    """Only where these other settings of the search, named before this one, have one of these values."""

    @model_validator(mode="after")
    def _validate_dimension(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or len(self.choices) < 2 or self.log or self.integer:
                raise ValueError("give either `low` and `high`, or two or more `choices`")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected `low` and `high`, or `choices`")
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low < high, and low > 0 with log; found low={self.low}, high={self.high}")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"expected whole numbers; found low={self.low}, high={self.high}")
        return self


class ReevaluationConfig(Section):
    """The best trials once more with other seeds, so that the winner is not the luckiest."""

    top_k: int = Field(3, ge=1)
    """How many."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of students; teachers stay those of the experiment's own seed."""


def _default_space() -> dict[str, Dimension]:
    return {
        "distill.mtkd.temperature": Dimension(low=1.0, high=10.0),
        "distill.mtkd.lam": Dimension(low=0.02, high=0.9, log=True),
        "distill.mtkd.weighting_temperature": Dimension(low=0.05, high=2.0, log=True),
    }


class TuningConfig(Section):
    """The search for the student's settings. Sees dev, never test."""

    trials: int = Field(16, ge=1)
    """Settings tried. Raise it, and the same command adds to a finished search."""
    max_concurrent_trials: int = Field(2, ge=1)
    """Trials at the same time."""
    workers_per_trial: int = Field(1, ge=1)
    """Data-parallel workers of a trial. One is a process that is used again; more are a worker group for each trial."""
    gpus_per_trial: float = Field(1.0, gt=0, le=1)
    """Share of a GPU that a trial reserves, where train.gpu is on; with several workers each has a whole one."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of a trial that is not stopped early; the student's own number if absent."""
    paradigm: Literal["ft", "kd", "mtkd"] = "mtkd"
    """Whose multilingual student is searched for."""
    space: dict[str, Dimension] = Field(default_factory=_default_space)
    """What is varied: dotted keys of `student`, `distill.kd` and `distill.mtkd`."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen; `grid` goes through all `choices`."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """When trials are stopped: asha keeps the best at each rung, median stops what is below the others' median."""
    grace_epochs: int = Field(2, ge=1)
    """Epochs before a trial can be stopped."""
    reduction_factor: int = Field(3, ge=2)
    """asha keeps one in this many trials at each rung."""
    objective: Literal["mean", "worst"] = "mean"
    """UR on dev that counts: the mean over languages, or the worst language's."""
    second_objective: Literal["size", "latency"] | None = None
    """A second objective, for a front of students that nothing beats in both: the student's number of parameters, or
    the time it takes for a clip of 5 s. Nothing is stopped early then."""
    study_storage: str | None = None
    """Where Optuna keeps the study: a database URL that all of a cluster reach; null: a SQLite file in the folder."""
    reevaluate: ReevaluationConfig | None = None
    """Run the best trials again with other seeds before the winner is named."""

    @model_validator(mode="after")
    def _validate_search(self) -> Self:
        if self.workers_per_trial > 1 and self.gpus_per_trial < 1:
            raise ValueError(
                f"expected gpus_per_trial: 1 where workers_per_trial is {self.workers_per_trial}, for each worker "
                f"takes a whole GPU; found {self.gpus_per_trial}"
            )
        if not self.space:
            raise ValueError("`space` is empty: name a setting to vary")
        for number, (key, dimension) in enumerate(self.space.items()):
            if not key.startswith(_SEARCHABLE_PREFIXES) or key in _FIXED_KEYS:
                raise ValueError(
                    f"`space` has {key}: expected keys below student, distill.kd or distill.mtkd, without "
                    + " and ".join(_FIXED_KEYS)
                )
            if unknown := [other for other in dimension.conditions if other not in list(self.space)[:number]]:
                raise ValueError(f"`space.{key}.when` names {', '.join(unknown)}, expected settings named before it")
        if self.sampler == "grid" and any(not each.choices or each.conditions for each in self.space.values()):
            raise ValueError(
                "sampler grid goes through `choices` alone, without `conditions`: list values, or take tpe"
            )
        return self
