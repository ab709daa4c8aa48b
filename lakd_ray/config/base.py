"""What every section of the experiment file is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the experiment file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
