"""Sentences of the demo corpus by language: emotionally neutral, 1 to 2 s each, written for this project."""

from typing import NamedTuple


class SpokenLanguage(NamedTuple):
    """The espeak-ng voice of a language and its sentences."""

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
