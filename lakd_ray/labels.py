"""Emotions, languages and splits by their canonical names."""

from collections.abc import Sequence

from lakd_ray.errors import DataError

# The four classes of the paper, in the order that every array with a class axis uses.
PAPER_EMOTIONS: tuple[str, ...] = ("anger", "happiness", "neutral", "sadness")

# Emotions that a manifest may hold. An experiment keeps the subset it names.
KNOWN_EMOTIONS: frozenset[str] = frozenset(
    [*PAPER_EMOTIONS, "disgust", "fear", "surprise", "calm", "boredom", "contempt"]
)
KNOWN_EMOTIONS |= {"excitement", "frustration", "other"}

SPLITS: tuple[str, ...] = ("train", "dev", "test")

# In reports, the row that pools every language.
POOLED = "all"


def check_emotion(name: str, *, context: str) -> str:
    """Return `name` if it is a canonical emotion.

    Raises:
        DataError: it is not; `where` says which row or file it came from.
    """
    if name not in KNOWN_EMOTIONS:
        raise DataError(
            f"unknown emotion {name!r} in {context}: expected one of {', '.join(sorted(KNOWN_EMOTIONS))}. "
            "Rename it in the manifest, or map it with the corpus option `emotions: {theirs: ours}`."
        )
    return name


def check_language(code: str, allowed: Sequence[str], *, context: str) -> str:
    """Return `code` if the experiment lists it among its languages.

    Raises:
        DataError: it does not; `where` says which row or file it came from.
    """
    if code not in allowed:
        raise DataError(
            f"unknown language {code!r} in {context}: the experiment has {', '.join(allowed)}. "
            "Add it to `languages`, or leave its rows out with the corpus option `languages`."
        )
    return code
