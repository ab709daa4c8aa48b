"""Define the configuration section `grid`: the folds, seeds and variants of an experiment that are run and compared."""

from typing import Any, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Name, Section

_VARIABLE_SECTIONS = ("student", "distill")


class GridConfig(Section):
    """The grid of an experiment: every fold with every seed, and in each cell the students of every variant."""

    folds: tuple[int, ...] | None = None
    """Folds to run; null: all folds of the corpus that has the most. Compare settings over all folds: the sign of a
    difference can depend on the test speakers of one fold.
    """
    seeds: tuple[int, ...] = Field((42, 43, 44), min_length=1)
    """Seeds to run; teachers and students of a cell use the same seed."""
    variants: dict[Name, dict[str, Any]] = Field({})
    """Students with different settings, by variant name: dotted keys of `student` and `distill`, and their values."""

    @model_validator(mode="after")
    def _validate_grid(self) -> Self:
        for field, numbers in (("folds", self.folds or ()), ("seeds", self.seeds)):
            if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
                raise ValueError(f"`{field}` are numbers from 0, each only once; found {list(numbers)}")
        if self.folds == ():
            raise ValueError("`folds` is empty: name at least one, or set it to null for all")
        for name, settings in self.variants.items():
            if fixed := [key for key in settings if str(key).split(".")[0] not in _VARIABLE_SECTIONS]:
                raise ValueError(
                    f"variant {name} changes {', '.join(map(str, fixed))}: only {' and '.join(_VARIABLE_SECTIONS)} "
                    "may vary, because the variants of an experiment share its data and its teachers. Write a "
                    "separate experiment."
                )
        return self
