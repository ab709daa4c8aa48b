"""Define the configuration section `distill.external_teachers`: teachers that were not trained by the experiment."""

from pydantic import Field

from lakd_ray.config.base import LanguageCode, Name, Section


class ExternalTeacherConfig(Section):
    """An external teacher of the mtkd students, used in addition to the experiment's own teachers."""

    name: Name
    """Short unique name of the teacher."""
    checkpoint: str
    """Absolute path or s3:// location of a checkpoint of this project or a transformers one, or the hub name of the
    latter."""
    revision: str | None = None
    """Revision of the hub repository to pin."""
    language: LanguageCode | None = None
    """Language of its training data, for weighting `language`; null: several languages."""
    emotion_map: dict[str, str] = Field({})
    """Map from the teacher's class names to the names used here, where they differ by more than an abbreviation or
    adjective (`ang`, `angry`). Several of its classes may map to one, and classes may be left out."""
    trained_on: tuple[str, ...] | None = None
    """Corpora of this experiment, or speakers (`corpus:speaker`), that it was trained or selected on; [] for none.
    null: the list of known models, or unknown, and every affected table states so. A checkpoint of this project has its
    own record, to which this adds."""
