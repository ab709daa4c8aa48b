"""Canonical names of emotions and splits, and checks of labels."""

from collections.abc import Sequence

from lakd_ray.errors import DataError

# The four classes of the paper, in the order that every array with a class axis uses.
PAPER_EMOTIONS: tuple[str, ...] = ("anger", "happiness", "neutral", "sadness")

# Emotions that a manifest may contain. An experiment uses the subset that it names.
KNOWN_EMOTIONS: frozenset[str] = frozenset(
    [*PAPER_EMOTIONS, "disgust", "fear", "surprise", "calm", "boredom", "contempt"]
)
KNOWN_EMOTIONS |= {"excitement", "frustration", "other"}

SPLITS: tuple[str, ...] = ("train", "dev", "test")

# Rows of reports over several languages: the mean, in which each language weighs the same, and the scores of all
# utterances together, in which a language weighs as much as it has utterances.
MEAN_OVER_LANGUAGES, POOLED = "mean", "all"


def check_emotion(name: str, *, context: str) -> str:
    """Return `name` if it is a canonical emotion.

    Args:
        name: the name of an emotion.
        context: the row or file of the name, for the error message.

    Raises:
        DataError: the name is not canonical.
    """
    if name not in KNOWN_EMOTIONS:
        raise DataError(
            f"unknown emotion {name!r} in {context}: expected one of {', '.join(sorted(KNOWN_EMOTIONS))}. "
            f"Rename it in the manifest, or map it with `emotion_map: {{{name}: EMOTION}}` of the corpus."
        )
    return name


def check_language(code: str, allowed: Sequence[str], *, context: str) -> str:
    """Return `code` if the experiment lists it among its languages.

    Args:
        code: the code of a language.
        allowed: the languages of the experiment.
        context: the row or file of the code, for the error message.

    Raises:
        DataError: the language is not one of the experiment.
    """
    if code not in allowed:
        raise DataError(
            f"unknown language {code!r} in {context}: the experiment has {', '.join(allowed)}. "
            "Add it to `languages`, or exclude its rows with `languages` of the corpus."
        )
    return code
