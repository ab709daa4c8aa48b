"""The section that names a teacher that was trained elsewhere."""

from typing import Annotated

from pydantic import Field

from lakd_ray.config.base import Section
from lakd_ray.config.grid import Name

LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class ExternalTeacherConfig(Section):
    """A teacher that is brought along; it teaches the mtkd students beside the experiment's own."""

    name: Name
    """Short unique name."""
    checkpoint: str
    """Absolute path or s3:// location of a checkpoint of this project, or a folder or hub name of transformers'."""
    revision: str | None = None
    """Hub revision to pin."""
    language: LanguageCode | None = None
    """What it was trained to hear, for weighting `language`; null: several."""
    emotion_map: dict[str, str] = Field({})
    """Its classes by their names here, where they differ: theirs -> ours. Several may become one, others none."""
    trained_on: tuple[str, ...] | None = None
    """Corpora of this experiment, or speakers (`corpus:speaker`), that it was trained or selected on; [] for none.
    null: not known, and every table that it touches says so; a checkpoint of this project knows itself."""
