"""Corpora and the readers of their layouts.

`read(corpus, ...)` is the one way in: it calls the importer that the experiment names, renames emotions, and refuses
what the rest of the project could not use. `IMPORTERS` says what can be read and how each corpus is obtained.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lakd_ray.config import Corpus
from lakd_ray.corpora.clip import Clip, Importer, LeftOut, Problem
from lakd_ray.corpora.layouts import IMPORTERS, Layout
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import check_emotion, check_language

__all__ = ["IMPORTERS", "Clip", "Found", "Importer", "Layout", "LeftOut", "Problem", "found", "layout_of", "read"]


@dataclass(frozen=True)
class Found:
    """What an importer finds."""

    clips: list[Clip]
    problems: list[Problem]
    left_out: Counter[str]
    """Recordings left out on purpose, by reason."""


def read(corpus: Corpus, *, languages: Sequence[str], storage_root: str) -> Found:
    """All usable clips of a corpus and all its problems, both sorted by id, in the experiment's names.

    Args:
        corpus: where it lies, who reads it, what is renamed and kept.
        languages: languages of the experiment.
        storage_root: what `{storage}` in the corpus's root stands for.

    Raises:
        ConfigError: the importer or one of its options is not known.
        DataError: the corpus as a whole cannot be read, or holds an emotion or language that nothing explains.
    """
    everything = found(corpus, storage_root=storage_root)
    clips = _checked(_kept(_renamed(everything.clips, corpus), corpus), languages)
    if not clips:
        raise _nothing(corpus, everything.problems)
    _refuse_duplicates(corpus, clips)
    return Found(
        sorted(clips, key=lambda clip: clip.id),
        sorted(everything.problems, key=lambda problem: (problem.id, problem.source)),
        everything.left_out,
    )


def found(corpus: Corpus, *, storage_root: str) -> Found:
    """What the importer finds, as the corpus names it, before anything is renamed, refused or sorted.

    Raises:
        ConfigError: the importer or one of its options is not known.
        DataError: the corpus as a whole cannot be read, or has no clips.
    """
    layout = _layout(corpus)
    everything = Found([], [], Counter())
    for item in layout.importer()(corpus.root.replace("{storage}", storage_root.rstrip("/")), corpus.options):
        if isinstance(item, Clip):
            everything.clips.append(item)
        elif isinstance(item, Problem):
            everything.problems.append(item)
        else:
            everything.left_out[item.reason] += 1
    if not everything.clips:
        raise _nothing(corpus, everything.problems)
    return everything


def _nothing(corpus: Corpus, problems: Sequence[Problem]) -> DataError:
    shown = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:3])
    return DataError(
        f"corpus {corpus.name} ({corpus.importer}, {corpus.root}) has no clips, and {len(problems)} problems"
        f"{': ' + shown if shown else ''}. Expected {IMPORTERS[corpus.importer].layout}: check `root` and `options`."
    )


def layout_of(importer: str) -> Layout:
    """The layout that an importer reads.

    Raises:
        ConfigError: there is no such importer.
    """
    if importer not in IMPORTERS:
        raise ConfigError(
            f"no importer `{importer}`{_suggest(importer, IMPORTERS)} A corpus of another layout can be described in a "
            "CSV manifest and read with `csv`."
        )
    return IMPORTERS[importer]


def _layout(corpus: Corpus) -> Layout:
    layout = layout_of(corpus.importer)
    for option in corpus.options:
        if option not in layout.options:
            raise ConfigError(
                f"corpus {corpus.name}: importer `{corpus.importer}` has no option `{option}`"
                f"{_suggest(option, layout.options)}"
            )
    return layout


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if not known:
        return "; it has none."
    return (
        f"; did you mean `{close[0]}`? Known are {', '.join(known)}." if close else f"; known are {', '.join(known)}."
    )


def _renamed(clips: list[Clip], corpus: Corpus) -> list[Clip]:
    """Apply `emotions`. A name that never occurs is a slip that would leave its clips out unnoticed."""
    occur = {clip.emotion for clip in clips}
    unused = sorted(set(corpus.emotions) - occur)
    if clips and unused:
        raise DataError(
            f"corpus {corpus.name}: `emotions` renames {', '.join(unused)}, which never occurs; found "
            f"{', '.join(sorted(occur))}. Correct the name or take it out."
        )
    if not corpus.emotions:
        return clips
    return [replace(clip, emotion=corpus.emotions.get(clip.emotion, clip.emotion)) for clip in clips]


def _kept(clips: list[Clip], corpus: Corpus) -> list[Clip]:
    """Apply `only_languages`."""
    if corpus.only_languages is None:
        return clips
    occur = {clip.language for clip in clips}
    absent = [language for language in corpus.only_languages if language not in occur]
    if clips and absent:
        raise DataError(
            f"corpus {corpus.name}: `only_languages` names {', '.join(absent)}, which never occurs; found "
            f"{', '.join(sorted(occur))}. Take it out of `only_languages`."
        )
    return [clip for clip in clips if clip.language in corpus.only_languages]


def _checked(clips: list[Clip], languages: Sequence[str]) -> list[Clip]:
    for clip in clips:
        where = f"{clip.id} ({clip.source})"
        check_language(clip.language, languages, where=where)
        check_emotion(clip.emotion, where=where)
    return clips


def _refuse_duplicates(corpus: Corpus, clips: list[Clip]) -> None:
    counts = Counter(clip.id for clip in clips)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        sources = [clip.source for clip in clips if clip.id == repeated[0]]
        raise DataError(
            f"corpus {corpus.name} has {len(repeated)} ids more than once; {repeated[0]!r} stands for "
            f"{' and '.join(sources)}. Leave only one copy of each recording below {corpus.root}."
        )
