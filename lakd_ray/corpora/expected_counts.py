"""Published numbers of utterances of corpora, to detect incomplete copies.

A key selects clips by their fields, for instance `session=Ses01 emotion=anger|sadness`; the empty key selects all.
Parts of corpora are often used on purpose, so a difference is reported as a note and not as an error.
"""

from collections.abc import Iterator, Mapping, Sequence

from lakd_ray.corpora.items import Clip

ExpectedCounts = Mapping[str, int]


def _counts_by_emotion(**counts: int) -> dict[str, int]:
    return {"": sum(counts.values()), **{f"emotion={emotion}": count for emotion, count in counts.items()}}


# Anger, happiness or excitement, neutral, sadness; counted together, because `merge_excited` merges the two.
_IEMOCAP_SESSION_COUNTS = {
    "Ses01": (229, 278, 384, 194),
    "Ses02": (137, 327, 362, 197),
    "Ses03": (240, 286, 320, 305),
    "Ses04": (327, 303, 258, 143),
    "Ses05": (170, 442, 384, 245),
}
_IEMOCAP_EMOTIONS = ("anger", "happiness|excitement", "neutral", "sadness")

IEMOCAP: ExpectedCounts = {
    **{
        f"emotion={emotion}": sum(row[column] for row in _IEMOCAP_SESSION_COUNTS.values())
        for column, emotion in enumerate(_IEMOCAP_EMOTIONS)
    },
    **{
        f"session={session} emotion={'|'.join(_IEMOCAP_EMOTIONS)}": sum(row)
        for session, row in _IEMOCAP_SESSION_COUNTS.items()
    },
    **{
        f"session={session} emotion={emotion}": count
        for session, row in _IEMOCAP_SESSION_COUNTS.items()
        for emotion, count in zip(_IEMOCAP_EMOTIONS, row, strict=True)
    },
}
CAFE: ExpectedCounts = _counts_by_emotion(
    anger=144, disgust=144, fear=144, happiness=144, neutral=72, sadness=144, surprise=144
)
CREMAD: ExpectedCounts = _counts_by_emotion(
    anger=1271, disgust=1271, fear=1271, happiness=1271, neutral=1087, sadness=1271
)
EMODB: ExpectedCounts = _counts_by_emotion(
    anger=127, boredom=81, disgust=46, fear=69, happiness=71, neutral=79, sadness=62
)
EMOZIONALMENTE: ExpectedCounts = {"": 6902}
ESD: ExpectedCounts = {"": 35_000, "language=en": 17_500, "language=zh": 17_500}
NEMO: ExpectedCounts = {"": 4481}
RAVDESS: ExpectedCounts = _counts_by_emotion(
    anger=192, calm=192, disgust=192, fear=192, happiness=192, neutral=96, sadness=192, surprise=192
)
SAVEE: ExpectedCounts = _counts_by_emotion(
    anger=60, disgust=60, fear=60, happiness=60, neutral=120, sadness=60, surprise=60
)
SHEMO: ExpectedCounts = _counts_by_emotion(anger=1059, fear=38, happiness=201, neutral=1028, sadness=449, surprise=225)
SUBESCO: ExpectedCounts = _counts_by_emotion(
    anger=1000, disgust=1000, fear=1000, happiness=1000, neutral=1000, sadness=1000, surprise=1000
)
TESS: ExpectedCounts = _counts_by_emotion(
    anger=400, disgust=400, fear=400, happiness=400, neutral=400, sadness=400, surprise=400
)


def describe_mismatches(counts: ExpectedCounts, clips: Sequence[Clip]) -> Iterator[str]:
    """Yield a sentence for each number of utterances that differs from the published one."""
    for key, expected in counts.items():
        conditions = [part.partition("=") for part in key.split()]
        actual = sum(all(getattr(clip, name) in values.split("|") for name, _, values in conditions) for clip in clips)
        if actual != expected:
            selection = ", ".join(f"{name} {values.replace('|', ' or ')}" for name, _, values in conditions)
            yield f"{selection or 'the corpus'} has {actual} of the published {expected} utterances"
