"""Corpora and the readers of their layouts.

`read(corpus, ...)` is the one way in: it calls the importer that the experiment names, renames emotions, and refuses
what the rest of the project could not use. `IMPORTERS` says what can be read and how each corpus is obtained.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lakd_ray.config import CorpusConfig
from lakd_ray.corpora.items import Clip, Excluded, Importer, InvalidItem
from lakd_ray.corpora.registry import IMPORTERS, ImporterSpec
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import check_emotion, check_language

__all__ = [
    "IMPORTERS",
    "Clip",
    "CorpusContents",
    "Excluded",
    "Importer",
    "ImporterSpec",
    "InvalidItem",
    "get_importer_spec",
    "read_corpus",
    "read_raw_corpus",
]


@dataclass(frozen=True)
class CorpusContents:
    """What an importer finds."""

    clips: list[Clip]
    invalid_items: list[InvalidItem]
    excluded: Counter[str]
    """Recordings left out on purpose, by reason."""


def read_corpus(corpus: CorpusConfig, *, languages: Sequence[str], storage_root: str) -> CorpusContents:
    """All usable clips of a corpus and all its problems, both sorted by id, in the experiment's names.

    Args:
        corpus: where it lies, who reads it, what is renamed and kept.
        languages: languages of the experiment.
        storage_root: what `{storage}` in the corpus's root stands for.

    Raises:
        ConfigError: the importer or one of its options is not known.
        DataError: the corpus as a whole cannot be read, or holds an emotion or language that nothing explains.
    """
    everything = read_raw_corpus(corpus, storage_root=storage_root)
    clips = _validate_labels(_filter_languages(_map_emotions(everything.clips, corpus), corpus), languages)
    if not clips:
        raise _no_clips_error(corpus, everything.invalid_items)
    _reject_duplicate_ids(corpus, clips)
    return CorpusContents(
        sorted(clips, key=lambda clip: clip.id),
        sorted(everything.invalid_items, key=lambda problem: (problem.id, problem.source)),
        everything.excluded,
    )


def read_raw_corpus(corpus: CorpusConfig, *, storage_root: str) -> CorpusContents:
    """What the importer finds, as the corpus names it, before anything is renamed, refused or sorted.

    Raises:
        ConfigError: the importer or one of its options is not known.
        DataError: the corpus as a whole cannot be read, or has no clips.
    """
    layout = _resolve_importer_spec(corpus)
    everything = CorpusContents([], [], Counter())
    for item in layout.load_importer()(corpus.root.replace("{storage}", storage_root.rstrip("/")), corpus.options):
        if isinstance(item, Clip):
            everything.clips.append(item)
        elif isinstance(item, InvalidItem):
            everything.invalid_items.append(item)
        else:
            everything.excluded[item.reason] += 1
    if not everything.clips:
        raise _no_clips_error(corpus, everything.invalid_items)
    return everything


def _no_clips_error(corpus: CorpusConfig, invalid_items: Sequence[InvalidItem]) -> DataError:
    shown = "; ".join(f"{problem.source}: {problem.reason}" for problem in invalid_items[:3])
    return DataError(
        f"corpus {corpus.name} ({corpus.importer}, {corpus.root}) has no clips, and {len(invalid_items)} problems"
        f"{': ' + shown if shown else ''}. Expected {IMPORTERS[corpus.importer].layout}: check `root` and `options`."
    )


def get_importer_spec(importer: str) -> ImporterSpec:
    """The layout that an importer reads.

    Raises:
        ConfigError: there is no such importer.
    """
    if importer not in IMPORTERS:
        raise ConfigError(
            f"no importer `{importer}`{_suggest_name(importer, IMPORTERS)} A corpus of another layout can be described in a "
            "CSV manifest and read with `csv`."
        )
    return IMPORTERS[importer]


def _resolve_importer_spec(corpus: CorpusConfig) -> ImporterSpec:
    layout = get_importer_spec(corpus.importer)
    for option in corpus.options:
        if option not in layout.options:
            raise ConfigError(
                f"corpus {corpus.name}: importer `{corpus.importer}` has no option `{option}`"
                f"{_suggest_name(option, layout.options)}"
            )
    return layout


def _suggest_name(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if not known:
        return "; it has none."
    return (
        f"; did you mean `{close[0]}`? Known are {', '.join(known)}." if close else f"; known are {', '.join(known)}."
    )


def _map_emotions(clips: list[Clip], corpus: CorpusConfig) -> list[Clip]:
    """Apply `emotions`. A name that never occurs is a slip that would leave its clips out unnoticed."""
    occur = {clip.emotion for clip in clips}
    unused = sorted(set(corpus.emotion_map) - occur)
    if clips and unused:
        raise DataError(
            f"corpus {corpus.name}: `emotion_map` renames {', '.join(unused)}, which never occurs; found "
            f"{', '.join(sorted(occur))}. Correct the name or take it out."
        )
    if not corpus.emotion_map:
        return clips
    return [replace(clip, emotion=corpus.emotion_map.get(clip.emotion, clip.emotion)) for clip in clips]


def _filter_languages(clips: list[Clip], corpus: CorpusConfig) -> list[Clip]:
    """Apply `languages`."""
    if corpus.languages is None:
        return clips
    occur = {clip.language for clip in clips}
    absent = [language for language in corpus.languages if language not in occur]
    if clips and absent:
        raise DataError(
            f"corpus {corpus.name}: `languages` names {', '.join(absent)}, which never occurs; found "
            f"{', '.join(sorted(occur))}. Take it out of `languages`."
        )
    return [clip for clip in clips if clip.language in corpus.languages]


def _validate_labels(clips: list[Clip], languages: Sequence[str]) -> list[Clip]:
    for clip in clips:
        where = f"{clip.id} ({clip.source})"
        check_language(clip.language, languages, context=where)
        check_emotion(clip.emotion, context=where)
    return clips


def _reject_duplicate_ids(corpus: CorpusConfig, clips: list[Clip]) -> None:
    counts = Counter(clip.id for clip in clips)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        sources = [clip.source for clip in clips if clip.id == repeated[0]]
        raise DataError(
            f"corpus {corpus.name} has {len(repeated)} ids more than once; {repeated[0]!r} stands for "
            f"{' and '.join(sources)}. Leave only one copy of each recording below {corpus.root}."
        )
