"""Checks of names that have a meaning outside the experiment file: importers and languages.

They run when a file is loaded, and not in the sections themselves: code may build sections with other names.
"""

import difflib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from lakd_ray.config.data import IMPORTER_NAMES
from lakd_ray.config.experiment import Experiment

# Codes of countries, and withdrawn codes, that are often used for languages.
_FREQUENT_MISTAKES = {
    "cn": "zh", "cz": "cs", "dk": "da", "gb": "en", "gr": "el", "in": "id", "iw": "he", "jp": "ja", "sp": "es",
    "ua": "uk", "us": "en", "tw": "zh",
}  # fmt: skip


def find_unknown_names(config: Experiment) -> list[str]:
    """Return an error line for each importer and each language of an experiment that does not exist."""
    return [*_unknown_importers(config), *_unknown_languages(config)]


def is_language_code(code: str) -> bool:
    """Return whether a code is one of ISO 639-1 or 639-3, or of the private-use range qaa to qtz."""
    return code in _language_codes() or (len(code) == 3 and "qaa" <= code <= "qtz")


def _unknown_importers(config: Experiment) -> Iterator[str]:
    for number, corpus in enumerate(config.corpora):
        if corpus.importer not in IMPORTER_NAMES:
            close = difflib.get_close_matches(corpus.importer, IMPORTER_NAMES, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            yield (
                f"`corpora.{number}.importer`: unknown importer {corpus.importer!r}; {hint}known importers: "
                f"{', '.join(IMPORTER_NAMES)}"
            )


def _unknown_languages(config: Experiment) -> Iterator[str]:
    codes = [(f"languages.{number}", code) for number, code in enumerate(config.languages)]
    for number, corpus in enumerate(config.corpora):
        codes += [(f"corpora.{number}.languages.{i}", code) for i, code in enumerate(corpus.languages or ())]
    for number, teacher in enumerate(config.distill.external_teachers):
        if teacher.language is not None:
            codes.append((f"distill.external_teachers.{number}.language", teacher.language))
    for key, code in codes:
        if not is_language_code(code):
            hint = f"did you mean `{_FREQUENT_MISTAKES[code]}`? " if code in _FREQUENT_MISTAKES else ""
            yield (
                f"`{key}`: unknown language {code!r}; {hint}expected a code of ISO 639-1, such as en, or of ISO 639-3, "
                "such as yue; codes from qaa to qtz are free for private use"
            )


@cache
def _language_codes() -> frozenset[str]:
    text = files("lakd_ray.config").joinpath("language_codes.txt").read_text(encoding="utf-8")
    return frozenset(code for line in text.splitlines() if not line.startswith("#") for code in line.split())
