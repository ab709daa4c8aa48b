"""What the demo corpus says, who says it and how the emotions are acted.

The sentences were written for this project: emotionally neutral, 1-2 s each.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class SpokenLanguage(NamedTuple):
    """How one language is spoken: the name espeak-ng knows it by, and its sentences."""

    espeak_voice: str
    sentences: tuple[str, ...]


LANGUAGES: dict[str, SpokenLanguage] = {
    "en": SpokenLanguage(
        "en-us",
        (
            "The box is on the table.",
            "She left the keys by the door.",
            "The bus stops at the corner.",
            "We have two chairs and a lamp.",
            "He put the letter in the drawer.",
            "The shop opens at nine.",
            "There is some water in the glass.",
            "They walked along the river.",
            "My coat is in the other room.",
            "The meeting is on the second floor.",
        ),
    ),
    "fi": SpokenLanguage(
        "fi",
        (
            "Laatikko on pöydällä.",
            "Avaimet jäivät oven viereen.",
            "Bussi pysähtyy kulmassa.",
            "Meillä on kaksi tuolia.",
            "Kirje on laatikossa.",
            "Kauppa avataan yhdeksältä.",
            "Lasissa on vähän vettä.",
            "He kävelivät joen vartta.",
            "Takkini on toisessa huoneessa.",
            "Kokous on toisessa kerroksessa.",
        ),
    ),
    "fr": SpokenLanguage(
        "fr",
        (
            "La boîte est sur la table.",
            "Elle a laissé les clés près de la porte.",
            "Le bus s'arrête au coin de la rue.",
            "Nous avons deux chaises et une lampe.",
            "Il a mis la lettre dans le tiroir.",
            "Le magasin ouvre à neuf heures.",
            "Il y a de l'eau dans le verre.",
            "Ils ont marché le long du fleuve.",
            "Mon manteau est dans l'autre pièce.",
            "La réunion est au deuxième étage.",
        ),
    ),
}

FEMALE_VOICES = (
    *("f1", "f2", "f3", "Annie", "Alicia", "f5", "linda", "steph", "grandma"),
    *("f4", "shelby", "Andrea", "belinda", "aunty", "anika", "steph2", "Nguyen", "steph3"),
)
"""espeak-ng voice variants in the range of women's voices (170-290 Hz on a plain sentence)."""

MALE_VOICES = (
    *("m1", "m3", "m7", "Alex", "Andy", "Gene2", "m4", "Denis", "Hugo"),
    *("m8", "Michael", "klatt2", "Mario", "Jacky", "gustave", "m2", "pablo", "travis"),
)
"""espeak-ng voice variants in the range of men's voices (90-135 Hz on a plain sentence)."""


@dataclass(frozen=True)
class Prosody:
    """How an emotion is acted: a mean and a standard deviation for each draw."""

    pitch: tuple[float, float]  # added to espeak's pitch, a scale of 0..99
    pitch_range: tuple[float, float]  # added to espeak's pitch range, a scale of 0..99
    rate: tuple[float, float]  # factor on the speaker's words per minute
    tilt: tuple[float, float]  # dB per octave around 1 kHz
    drive: tuple[float, float]  # strength of the soft clipping; 0.3 is next to none
    breath: tuple[float, float]  # breath noise in dB relative to the voice
    tremolo: tuple[float, float]  # depth of a swing in loudness, four to six times a second
    level: tuple[float, float]  # RMS in dB of full scale


PROSODY_BY_EMOTION: dict[str, Prosody] = {
    "anger": Prosody((12, 5), (24, 8), (1.17, 0.06), (3.2, 0.9), (5.0, 1.4), (-36, 4), (0.12, 0.07), (-19, 3)),
    "happiness": Prosody((22, 6), (44, 8), (1.08, 0.06), (1.5, 0.9), (1.0, 0.6), (-34, 4), (0.55, 0.13), (-21, 3)),
    "neutral": Prosody((0, 5), (0, 7), (1.00, 0.06), (0.0, 0.9), (0.8, 0.5), (-36, 4), (0.12, 0.07), (-23, 3)),
    "sadness": Prosody((-10, 5), (-22, 7), (0.79, 0.06), (-3.1, 0.9), (0.5, 0.3), (-15, 3), (0.20, 0.10), (-25, 3)),
}


@dataclass(frozen=True)
class Speaker:
    """One voice: an espeak-ng variant with habits of its own, which vary more than emotions shift them."""

    name: str
    session: str
    voice: str
    pitch: float
    pitch_range: float
    words_per_minute: float
    tilt: float


def make_speakers(language: str, count: int, seed: int) -> list[Speaker]:
    """The speakers of a language, women and men in turn; each session is one woman and one man.

    Up to 12 speakers no voice variant is shared between languages; within a language none ever is.
    """
    order = list(LANGUAGES).index(language)
    rng = np.random.default_rng((seed, 1, order))
    speakers = []
    for index in range(count):
        turn, pool = index // 2, (FEMALE_VOICES, MALE_VOICES)[index % 2]
        first = turn * len(LANGUAGES)
        shift = (order + first // len(pool)) % len(LANGUAGES)  # later rounds: another language's variants
        speakers.append(
            Speaker(
                name=f"{language}-{index + 1:02d}",
                session=f"{language}-session{turn + 1:02d}",
                voice=f"{LANGUAGES[language].espeak_voice}+{pool[(first + shift) % len(pool)]}",
                pitch=float(rng.uniform(24, 66)),
                pitch_range=float(rng.uniform(32, 52)),
                words_per_minute=float(rng.uniform(165, 200)),
                tilt=float(rng.normal(0, 0.8)),
            )
        )
    return speakers
