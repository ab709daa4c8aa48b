"""Synthetic speakers of the demo corpus: espeak-ng voice variants with individual pitch, rate and timbre."""

from dataclasses import dataclass

import numpy as np

from lakd_ray.corpora.espeak.sentences import LANGUAGES

FEMALE_VOICES = (
    *("f1", "f2", "f3", "Annie", "Alicia", "f5", "linda", "steph", "grandma"),
    *("f4", "shelby", "Andrea", "belinda", "aunty", "anika", "steph2", "Nguyen", "steph3"),
)
"""espeak-ng voice variants with the pitch of female voices (170 to 290 Hz in a neutral sentence)."""

MALE_VOICES = (
    *("m1", "m3", "m7", "Alex", "Andy", "Gene2", "m4", "Denis", "Hugo"),
    *("m8", "Michael", "klatt2", "Mario", "Jacky", "gustave", "m2", "pablo", "travis"),
)
"""espeak-ng voice variants with the pitch of male voices (90 to 135 Hz in a neutral sentence)."""

MAX_SPEAKERS = len(FEMALE_VOICES) + len(MALE_VOICES)


@dataclass(frozen=True)
class Speaker:
    """A voice variant with its own base values, which vary more between speakers than between emotions."""

    name: str
    session: str
    voice: str
    """Name of the voice in espeak-ng: language and variant, such as `en-us+f1`."""
    pitch: float
    """espeak-ng's pitch, on a scale of 0 to 99."""
    pitch_range: float
    """espeak-ng's pitch range, on a scale of 0 to 99."""
    words_per_minute: float
    tilt: float
    """Spectral tilt in dB per octave."""


def make_speakers(language: str, count: int, seed: int) -> list[Speaker]:
    """Return the speakers of a language, women and men in turn; each session has one woman and one man.

    A voice variant occurs only once within a language. With up to 12 speakers no variant is shared between languages.
    """
    language_index = list(LANGUAGES).index(language)
    rng = np.random.default_rng((seed, 1, language_index))
    speakers = []
    for index in range(count):
        session, voices = index // 2, (FEMALE_VOICES, MALE_VOICES)[index % 2]
        first = session * len(LANGUAGES)
        shift = (language_index + first // len(voices)) % len(LANGUAGES)  # reuses variants of other languages at last
        speakers.append(
            Speaker(
                name=f"{language}-{index + 1:02d}",
                session=f"{language}-session{session + 1:02d}",
                voice=f"{LANGUAGES[language].espeak_voice}+{voices[(first + shift) % len(voices)]}",
                pitch=float(rng.uniform(24, 66)),
                pitch_range=float(rng.uniform(32, 52)),
                words_per_minute=float(rng.uniform(165, 200)),
                tilt=float(rng.normal(0, 0.8)),
            )
        )
    return speakers
