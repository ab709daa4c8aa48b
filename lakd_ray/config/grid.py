"""The section that says which folds, seeds and variants of an experiment are run and compared."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lakd_ray.config.base import Section

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]

_VARIABLE_SECTIONS = ("student", "distill")


class GridConfig(Section):
    """What `lakd reproduce` goes through: every fold with every seed, and in each the students of every variant."""

    folds: tuple[int, ...] | None = None
    """Which folds; null: all, as many as the corpus with most of them has."""
    seeds: tuple[int, ...] = Field((42, 43, 44), min_length=1)
    """Seeds; teachers and students of a cell have the same."""
    variants: dict[Name, dict[str, Any]] = Field({})
    """Students with other settings, by name: dotted keys of `student` and `distill`, and their values."""

    @model_validator(mode="after")
    def _validate_grid(self) -> Self:
        for what, numbers in (("folds", self.folds or ()), ("seeds", self.seeds)):
            if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
                raise ValueError(f"`{what}` are numbers from 0, each only once; found {list(numbers)}")
        if self.folds == ():
            raise ValueError("`folds` is empty: name some, or null for all")
        for name, changes in self.variants.items():
            if strange := [key for key in changes if key.split(".")[0] not in _VARIABLE_SECTIONS]:
                raise ValueError(
                    f"variant {name} changes {', '.join(strange)}: only {' and '.join(_VARIABLE_SECTIONS)} may vary, for the "
                    "variants of an experiment share its data and its teachers. Make it an experiment of its own."
                )
        return self
