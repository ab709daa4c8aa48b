"""The base class of every configuration section, and the types of names that several sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class Section(BaseModel):
    """A section of the configuration: frozen, without unknown keys, with a docstring for each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )
