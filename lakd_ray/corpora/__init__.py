"""Read speech emotion corpora in their published layouts.

`read_corpus` is the entry point: it calls the importer that the experiment names, maps emotions, and rejects corpora
that later stages cannot use. `IMPORTERS` describes the supported layouts and how to obtain each corpus.

To add a corpus, write a module with a function `iter_items(root, options)` that yields the types of
`lakd_ray.corpora.items`, and register it; `lakd_ray.corpora.registry` has the steps. Helpers for importers:

filename_parser  corpora whose labels are in the file names
label_table      corpora with one table of labels next to the recordings
manifest_rows    rows with named columns
csv_manifest     CSV and JSONL files
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
    """The clips and problems that an importer yields for a corpus."""

    clips: list[Clip]
    invalid_items: list[InvalidItem]
    excluded: Counter[str]
    """Number of recordings excluded on purpose, by reason."""


def read_corpus(corpus: CorpusConfig, *, languages: Sequence[str], storage_root: str) -> CorpusContents:
    """Return all usable clips and all invalid items of a corpus, sorted by id, with the experiment's emotion names.

    Args:
        corpus: configuration of the corpus: root, importer and its options, emotion map, languages.
        languages: languages of the experiment.
        storage_root: replaces `{storage}` in the root of the corpus.

    Raises:
        ConfigError: the importer or one of its options is unknown.
        DataError: the corpus cannot be read, or contains an unknown emotion or language, or an id twice.
    """
    contents = read_raw_corpus(corpus, storage_root=storage_root)
    clips = _validate_labels(_filter_languages(_map_emotions(contents.clips, corpus), corpus), languages)
    if not clips:
        raise _no_clips_error(corpus, contents.invalid_items)
    _reject_duplicate_ids(corpus, clips)
    return CorpusContents(
        sorted(clips, key=lambda clip: clip.id),
        sorted(contents.invalid_items, key=lambda item: (item.id, item.source)),
        contents.excluded,
    )


def read_raw_corpus(corpus: CorpusConfig, *, storage_root: str) -> CorpusContents:
    """Return the contents of a corpus as its importer yields them: not mapped, filtered, validated or sorted.

    Raises:
        ConfigError: the importer or one of its options is unknown.
        DataError: the corpus cannot be read, or has no clips.
    """
    iter_items = _resolve_importer_spec(corpus).load_importer()
    contents = CorpusContents([], [], Counter())
    for item in iter_items(corpus.root.replace("{storage}", storage_root.rstrip("/")), corpus.options):
        if isinstance(item, Clip):
            contents.clips.append(item)
        elif isinstance(item, InvalidItem):
            contents.invalid_items.append(item)
        else:
            contents.excluded[item.reason] += 1
    if not contents.clips:
        raise _no_clips_error(corpus, contents.invalid_items)
    return contents


def _no_clips_error(corpus: CorpusConfig, invalid_items: Sequence[InvalidItem]) -> DataError:
    examples = "; ".join(f"{item.source}: {item.reason}" for item in invalid_items[:3])
    return DataError(
        f"corpus {corpus.name} ({corpus.importer}, {corpus.root}) has no clips, and {len(invalid_items)} problems"
        f"{': ' + examples if examples else ''}. Expected {IMPORTERS[corpus.importer].layout}: check `root` and "
        "`options`."
    )


def get_importer_spec(importer: str) -> ImporterSpec:
    """Return the specification of an importer.

    Raises:
        ConfigError: there is no importer with this name.
    """
    if importer not in IMPORTERS:
        raise ConfigError(
            f"no importer `{importer}`{_suggest_name(importer, IMPORTERS)} A corpus with a different layout can be "
            "described in a CSV manifest and read with `csv`."
        )
    return IMPORTERS[importer]


def _resolve_importer_spec(corpus: CorpusConfig) -> ImporterSpec:
    spec = get_importer_spec(corpus.importer)
    for option in corpus.options:
        if option not in spec.options:
            raise ConfigError(
                f"corpus {corpus.name}: importer `{corpus.importer}` has no option `{option}`"
                f"{_suggest_name(option, spec.options)}"
            )
    return spec


def _suggest_name(name: str, known: Mapping[str, object]) -> str:
    if not known:
        return "; it has no options."
    similar = difflib.get_close_matches(name, known, n=1)
    if similar:
        return f"; did you mean `{similar[0]}`? Expected one of {', '.join(known)}."
    return f"; expected one of {', '.join(known)}."


def _map_emotions(clips: list[Clip], corpus: CorpusConfig) -> list[Clip]:
    """Apply `emotion_map`; a name that does not occur is an error, since a typing error would go unnoticed."""
    emotions = {clip.emotion for clip in clips}
    unused = sorted(set(corpus.emotion_map) - emotions)
    if clips and unused:
        raise DataError(
            f"corpus {corpus.name}: `emotion_map` renames {', '.join(unused)}, which never occurs; found "
            f"{', '.join(sorted(emotions))}. Correct or remove the name."
        )
    if not corpus.emotion_map:
        return clips
    return [replace(clip, emotion=corpus.emotion_map.get(clip.emotion, clip.emotion)) for clip in clips]


def _filter_languages(clips: list[Clip], corpus: CorpusConfig) -> list[Clip]:
    """Apply the corpus's own setting `languages`."""
    if corpus.languages is None:
        return clips
    languages = {clip.language for clip in clips}
    absent = [language for language in corpus.languages if language not in languages]
    if clips and absent:
        raise DataError(
            f"corpus {corpus.name}: `languages` names {', '.join(absent)}, which never occurs; found "
            f"{', '.join(sorted(languages))}. Remove it from `languages`."
        )
    return [clip for clip in clips if clip.language in corpus.languages]


def _validate_labels(clips: list[Clip], languages: Sequence[str]) -> list[Clip]:
    for clip in clips:
        context = f"{clip.id} ({clip.source})"
        check_language(clip.language, languages, context=context)
        check_emotion(clip.emotion, context=context)
    return clips


def _reject_duplicate_ids(corpus: CorpusConfig, clips: list[Clip]) -> None:
    counts = Counter(clip.id for clip in clips)
    duplicates = sorted(clip_id for clip_id, count in counts.items() if count > 1)
    if duplicates:
        sources = [clip.source for clip in clips if clip.id == duplicates[0]]
        raise DataError(
            f"corpus {corpus.name} has {len(duplicates)} duplicate ids; {duplicates[0]!r} is the id of "
            f"{' and '.join(sources)}. Leave only one copy of each recording below {corpus.root}."
        )
