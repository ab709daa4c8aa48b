"""Canonical names of emotions and splits, checks of labels, and the order of classes.

Classes are matched by name, never by position: an array with a class axis from a file or a different model passes
through `class_indices` first.
"""

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

# Adjectives and abbreviations of published models and corpora. Names that need a decision, such as joy, are not here.
_EMOTION_ALIASES = {
    "anger": ("angry", "ang"),
    "happiness": ("happy", "hap"),
    "neutral": ("neu",),
    "sadness": ("sad",),
    "disgust": ("disgusted", "dis"),
    "fear": ("fearful", "fea"),
    "surprise": ("surprised", "sur"),
    "calm": ("cal",),
    "boredom": ("bored", "bor"),
    "excitement": ("excited", "exc"),
    "frustration": ("frustrated", "fru"),
}
_CANONICAL_NAMES = {alias: name for name, aliases in _EMOTION_ALIASES.items() for alias in aliases}

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


CLASS_REMEDY = "use a model or file with these classes, or change `emotions` of the experiment"


def canonical_emotion(name: str) -> str:
    """Return the canonical emotion of a foreign class name such as `Angry` or `ang`; unknown names are unchanged."""
    lowered = name.strip().lower()
    return _CANONICAL_NAMES.get(lowered, lowered if lowered in KNOWN_EMOTIONS else name)


def class_indices(
    found: Sequence[str], expected: Sequence[str], *, context: str, remedy: str = CLASS_REMEDY
) -> list[int]:
    """Return the position in `found` of each expected class, so that `array[..., indices]` has the expected order.

    Args:
        found: names of the classes of an array, a file or a model, in its order.
        expected: the same names in the required order.
        context: the owner of the found classes, for the error message.
        remedy: advice for the error message.

    Raises:
        DataError: the two lists have different classes.
    """
    if len(found) != len(expected) or set(found) != set(expected):
        raise DataError(
            f"{context} has the classes {', '.join(found) or '(none)'}; expected {', '.join(expected)}, in any order. "
            f"Classes are matched by name: {remedy}."
        )
    return [list(found).index(name) for name in expected]
