"""Corpora and the readers of their layouts.

`read(corpus, ...)` is the one way in: it calls the importer that the experiment names, renames emotions, and refuses
what the rest of the project could not use. `IMPORTERS` says what can be read and how each corpus is obtained.
"""

import difflib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from lakd_ray.config import Corpus
from lakd_ray.corpora.clip import Clip, Importer, Problem
from lakd_ray.errors import ConfigError, DataError
from lakd_ray.labels import check_emotion, check_language

__all__ = ["IMPORTERS", "Clip", "Importer", "Layout", "Problem", "read"]


@dataclass(frozen=True)
class Layout:
    """A layout that can be read."""

    module: str
    """Where its `read` function is; imported when it is needed."""
    layout: str
    """What lies below `root`, in one line."""
    licence: str
    """On what terms the corpus may be used."""
    obtain: str
    """Where it comes from."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the importer and what they do."""

    def importer(self) -> Importer:
        """The function that reads the layout."""
        return cast(Importer, importlib.import_module(self.module).read)


IMPORTERS: dict[str, Layout] = {
    "csv": Layout(
        module="lakd_ray.corpora.table",
        layout="manifest.csv or manifest.jsonl: path, emotion, language, speaker [, sentence, session, split, id]",
        licence="that of your own recordings",
        obtain="write one for any corpus; relative paths start at the manifest's folder",
        options={"columns": "names of columns, ours: theirs", "language": "language of rows that name none"},
    ),
    "iemocap": Layout(
        module="lakd_ray.corpora.iemocap",
        layout="SessionN/sentences/wav/<dialog>/<utterance>.wav, SessionN/dialog/EmoEvaluation/<dialog>.txt",
        licence="granted by its owner on request; not to be passed on",
        obtain="request it at https://sail.usc.edu/iemocap/",
        options={"merge_excited": "true: excitement counts as happiness (default false)"},
    ),
    "fesc": Layout(
        module="lakd_ray.corpora.fesc",
        layout="<SPEAKER>/{train,dev,test}.json: {id: {file_path, label}}, one folder per held-out speaker",
        licence="granted by its owners on request",
        obtain="not public; ask its owners for the recordings and the split files",
        options={"labels": "required: code: emotion", "audio": "folder of the recordings (default: root)"},
    ),
    "cafe": Layout(
        module="lakd_ray.corpora.cafe",
        layout="AA-E-I-S.wav in any folders: actor, emotion, intensity, sentence",
        licence="CC BY-NC-SA 4.0; see the copy you download",
        obtain="https://zenodo.org/records/1478765",
        options={"intensity": "both (default), strong or weak; neutral is always kept"},
    ),
    "espeak": Layout(
        module="lakd_ray.corpora.demo",
        layout="a local folder; the corpus is synthesised into it if there is none",
        licence="synthesised here, yours; espeak-ng itself is GPL-3",
        obtain="pip install 'lakd-ray[demo]'",
        options={
            "languages": "languages spoken",
            "speakers": "speakers of each language",
            "sentences": "sentences of each language",
            "takes": "times each sentence is said with each emotion",
            "seed": "draws the voices and the acting",
        },
    ),
}


def read(corpus: Corpus, *, languages: Sequence[str], storage_root: str) -> tuple[list[Clip], list[Problem]]:
    """All usable clips of a corpus and all its problems, both sorted by id.

    Args:
        corpus: where it lies, who reads it, what is renamed and kept.
        languages: languages of the experiment.
        storage_root: what `{storage}` in the corpus's root stands for.

    Raises:
        ConfigError: the importer or one of its options is not known.
        DataError: the corpus as a whole cannot be read, or holds an emotion or language that nothing explains.
    """
    layout = _layout(corpus)
    clips: list[Clip] = []
    problems: list[Problem] = []
    for item in layout.importer()(corpus.root.replace("{storage}", storage_root.rstrip("/")), corpus.options):
        if isinstance(item, Clip):
            clips.append(item)
        else:
            problems.append(item)
    clips = _checked(_kept(_renamed(clips, corpus), corpus), languages)
    if not clips:
        shown = "; ".join(f"{problem.source}: {problem.reason}" for problem in problems[:3])
        raise DataError(
            f"corpus {corpus.name} ({corpus.importer}, {corpus.root}) has no clips, and {len(problems)} problems"
            f"{': ' + shown if shown else ''}. Expected {layout.layout}: check `root` and `options`."
        )
    _refuse_duplicates(corpus, clips)
    return sorted(clips, key=lambda clip: clip.id), sorted(problems, key=lambda found: (found.id, found.source))


def _layout(corpus: Corpus) -> Layout:
    layout = IMPORTERS.get(corpus.importer)
    if layout is None:
        raise ConfigError(
            f"corpus {corpus.name}: no importer `{corpus.importer}`{_suggest(corpus.importer, IMPORTERS)} "
            "A corpus of another layout can be described in a CSV manifest and read with `csv`."
        )
    for option in corpus.options:
        if option not in layout.options:
            raise ConfigError(
                f"corpus {corpus.name}: importer `{corpus.importer}` has no option `{option}`"
                f"{_suggest(option, layout.options)}"
            )
    return layout


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (
        f"; did you mean `{close[0]}`? Known are {', '.join(known)}." if close else f"; known are {', '.join(known)}."
    )


def _renamed(clips: list[Clip], corpus: Corpus) -> list[Clip]:
    """Apply `emotions`. A name that never occurs is a slip that would leave its clips out unnoticed."""
    found = {clip.emotion for clip in clips}
    unused = sorted(set(corpus.emotions) - found)
    if clips and unused:
        raise DataError(
            f"corpus {corpus.name}: `emotions` renames {', '.join(unused)}, which never occurs; found "
            f"{', '.join(sorted(found))}. Correct the name or take it out."
        )
    if not corpus.emotions:
        return clips
    return [replace(clip, emotion=corpus.emotions.get(clip.emotion, clip.emotion)) for clip in clips]


def _kept(clips: list[Clip], corpus: Corpus) -> list[Clip]:
    """Apply `only_languages`."""
    if corpus.only_languages is None:
        return clips
    found = {clip.language for clip in clips}
    absent = [language for language in corpus.only_languages if language not in found]
    if clips and absent:
        raise DataError(
            f"corpus {corpus.name}: `only_languages` names {', '.join(absent)}, which never occurs; found "
            f"{', '.join(sorted(found))}. Take it out of `only_languages`."
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
