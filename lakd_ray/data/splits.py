"""Train, dev and test: which utterance is in which, for one fold.

`assign` divides, `check` refuses what must not be. Both look at the manifest alone, never at the order of its rows.
A corpus is dealt by speakers or sessions; those that occur in the same languages are dealt together, so that every
language of a corpus has its share in every fold. Draws are orders by SHA-256: stable over machines and versions.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lakd_ray.config import Corpus, Experiment, Split
from lakd_ray.errors import SplitError
from lakd_ray.labels import SPLITS

Splits = npt.NDArray[np.str_]
_Codes = npt.NDArray[np.int64]
_LEFT_OUT, _TRAIN, _DEV, _TEST = range(4)
_NAMES = np.array(["", *SPLITS])
# The folds of Bijoy et al. 2025; CaFE's are those in common use.
_PAPER: dict[str, dict[str, Any]] = {
    "iemocap": {"scheme": "leave-one-session-out"},
    "fesc": {"scheme": "leave-one-speaker-out"},
    "cafe": {
        "scheme": "speaker-groups",
        "groups": (("01", "07", "08", "10"), ("02", "04", "09", "12"), ("03", "05", "06", "11")),
    },
}

# A speaker or session, and the languages it occurs in.
Units = dict[str, frozenset[str]]


def assign(manifest: pa.Table, config: Experiment, fold: int | None = None) -> Splits:
    """'train', 'dev', 'test' or '' (left out) for every row of the manifest.

    Left out are emotions and languages that the experiment does not name. Each corpus takes the fold modulo its own
    number of folds, so a corpus with fewer folds repeats whole divisions, dev included.

    Raises:
        SplitError: a corpus cannot be divided as its configuration says.
    """
    rows = _Rows(manifest, config)
    split_N = np.full(manifest.num_rows, _LEFT_OUT, np.int8)
    for corpus, at_N in _corpora(rows, config):
        if corpus.split.scheme == "given":
            split_N[at_N] = _given(rows, corpus, at_N)
        else:
            split_N[at_N] = _dealt(rows, corpus, at_N, config.fold if fold is None else fold)
    return np.asarray(_NAMES[split_N])


def fold_count(manifest: pa.Table, config: Experiment) -> int:
    """Folds until every corpus has been tested whole: those of the corpus with most."""
    rows = _Rows(manifest, config)
    return max(_folds(rows, corpus, at_N) for corpus, at_N in _corpora(rows, config))


def parts(manifest: pa.Table, rows: _Codes, count: int) -> _Codes:
    """Which of `count` parts each of some rows falls in, the speakers of each language dealt out evenly.

    Raises:
        SplitError: a language has fewer speakers than there are to be parts.
    """
    table = manifest.select(["speaker", "language"]).take(rows)
    speakers, languages = (np.asarray(table[name].to_pylist(), dtype=str) for name in ("speaker", "language"))
    dealt: dict[str, int] = {}  # who speaks two languages is in one part
    for language in np.unique(languages):
        found = by_hash(np.unique(speakers[languages == language]).tolist(), "part")
        if len(found) < count:
            raise SplitError(
                f"language {language} has {len(found)} training speakers ({listed(found)}), too few for {count} parts. "
                "Lower `cross_fit` of the distillation loss."
            )
        for number, speaker in enumerate(found):
            dealt.setdefault(speaker, number % count)
    return np.array([dealt[speaker] for speaker in speakers], np.int64)


def _corpora(rows: "_Rows", config: Experiment) -> Iterator[tuple[Corpus, npt.NDArray[np.intp]]]:
    """Corpora, scheme `paper` spelt out, and their rows."""
    for corpus in config.corpora:
        spelt_out = _as_in_the_paper(corpus)
        at_N = rows.of(corpus)
        expected, found = corpus.split.count(corpus.importer), _folds(rows, spelt_out, at_N)
        if expected not in (None, found):
            raise SplitError(
                f"corpus {corpus.name} can be divided into {found} folds, but the paper has {expected}: some of it is "
                f"missing. Complete it, or choose scheme `{spelt_out.split.scheme}`, which takes what is there."
            )
        yield spelt_out, at_N


def _as_in_the_paper(corpus: Corpus) -> Corpus:
    """The corpus with scheme `paper` spelt out."""
    if corpus.split.scheme != "paper":
        return corpus
    if corpus.importer not in _PAPER:
        raise SplitError(
            f"corpus {corpus.name}: scheme `paper` is for the paper's corpora ({', '.join(_PAPER)}), and its importer "
            f"is `{corpus.importer}`. Choose another scheme."
        )
    spelt_out = {**_PAPER[corpus.importer], "dev_speakers": corpus.split.dev_speakers}
    return corpus.model_copy(update={"split": Split.model_validate(spelt_out)})


@dataclass(frozen=True)
class _Column:
    """A column as numbers: `names[codes[i]]` is the value of row i, and -1 stands for none."""

    codes: _Codes
    names: list[str]

    @classmethod
    def of(cls, manifest: pa.Table, name: str) -> "_Column":
        encoded = pc.cast(manifest[name], pa.large_string()).combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(codes, encoded.dictionary.to_pylist())

    def isin(self, names: Iterable[str]) -> npt.NDArray[np.bool_]:
        wanted = set(names)
        return np.array([*(name in wanted for name in self.names), False])[self.codes]

    def present(self, at_N: npt.NDArray[np.intp]) -> list[str]:
        """Sorted values of some rows."""
        return sorted(self.names[code] for code in np.unique(self.codes[at_N]) if code >= 0)


class _Rows:
    """The manifest's columns, and the rows that the experiment uses."""

    def __init__(self, manifest: pa.Table, config: Experiment) -> None:
        self._columns: dict[str, _Column] = {}
        self._manifest = manifest
        self._kept_N = self["emotion"].isin(config.emotions) & self["language"].isin(config.languages)
        known = [corpus.name for corpus in config.corpora]
        if strange := sorted(set(self["corpus"].names) - set(known)):
            raise SplitError(
                f"the manifest holds corpus {', '.join(strange)}; the experiment has {', '.join(known)}. Make the "
                "manifest again, or add the corpus to `corpora`."
            )

    def __getitem__(self, name: str) -> _Column:
        if name not in self._columns:
            self._columns[name] = _Column.of(self._manifest, name)
        return self._columns[name]

    def of(self, corpus: Corpus) -> npt.NDArray[np.intp]:
        """Rows of a corpus that the experiment uses."""
        at_N = np.flatnonzero(self["corpus"].isin([corpus.name]) & self._kept_N)
        if not len(at_N):
            raise SplitError(
                f"the manifest has no utterances of corpus {corpus.name} with the experiment's languages and emotions. "
                "Make the manifest again, or take the corpus out of `corpora`."
            )
        return at_N

    def units(self, at_N: npt.NDArray[np.intp], column: str) -> Units:
        """Speakers or sessions among some rows, each with its languages."""
        units, languages = self[column], self["language"]
        pairs = np.unique(units.codes[at_N] * len(languages.names) + languages.codes[at_N])
        found: dict[str, set[str]] = defaultdict(set)
        for pair in pairs.tolist():
            unit, language = divmod(pair, len(languages.names))
            found[units.names[unit]].add(languages.names[language])
        return {unit: frozenset(found[unit]) for unit in sorted(found)}


def _given(rows: _Rows, corpus: Corpus, at_N: npt.NDArray[np.intp]) -> npt.NDArray[np.int8]:
    column = rows["split"]
    strange = [name for name in column.present(at_N) if name not in SPLITS]
    without = int((column.codes[at_N] < 0).sum())
    if strange or without:
        raise SplitError(
            f"corpus {corpus.name}: scheme `given` expects a split of {', '.join(SPLITS)} for every utterance; found "
            f"{listed(strange) or 'no other name'}, and none for {without} utterances. Correct the corpus's manifest, "
            "or choose another scheme."
        )
    numbers = {name: number for number, name in enumerate(_NAMES.tolist())}
    return np.array([*(numbers.get(name, 0) for name in column.names), 0], np.int8)[column.codes[at_N]]


def _dealt(rows: _Rows, corpus: Corpus, at_N: npt.NDArray[np.intp], fold: int) -> npt.NDArray[np.int8]:
    """Splits of a corpus whose test is one fold of its speakers or sessions."""
    fold %= _folds(rows, corpus, at_N)
    if corpus.split.scheme == "leave-one-session-out":
        test_N = rows["session"].isin(_test_units(_sessions(rows, corpus, at_N), corpus, fold))[at_N]
    else:
        test_N = rows["speaker"].isin(_test_units(rows.units(at_N, "speaker"), corpus, fold))[at_N]
    dev = _dev_speakers(rows.units(at_N[~test_N], "speaker"), corpus, fold)
    dev_N = rows["speaker"].isin(dev)[at_N]
    return np.select([test_N, dev_N], [_TEST, _DEV], _TRAIN).astype(np.int8)


def _folds(rows: _Rows, corpus: Corpus, at_N: npt.NDArray[np.intp]) -> int:
    """How many folds a corpus has."""
    if known := corpus.split.count(corpus.importer):
        return known
    sessions = corpus.split.scheme == "leave-one-session-out"
    units = _sessions(rows, corpus, at_N) if sessions else rows.units(at_N, "speaker")
    return max(len(group) for group in _groups(units))


def _sessions(rows: _Rows, corpus: Corpus, at_N: npt.NDArray[np.intp]) -> Units:
    without = at_N[rows["session"].codes[at_N] < 0]
    if len(without):
        raise SplitError(
            f"corpus {corpus.name}: scheme `leave-one-session-out` needs the session of every utterance; "
            f"{len(without)} of {len(at_N)} have none, for instance those of speaker "
            f"{rows['speaker'].present(without)[0]}. Add the column to the corpus, or choose another scheme."
        )
    return rows.units(at_N, "session")


def _groups(units: Units) -> list[list[str]]:
    """Units by the set of languages they occur in."""
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for unit, languages in units.items():
        groups[languages].append(unit)
    return list(groups.values())


def _test_units(units: Units, corpus: Corpus, fold: int) -> list[str]:
    """The speakers or sessions that a fold holds out."""
    split = corpus.split
    if split.scheme == "speaker-groups":
        return _named_speakers(units, corpus)[fold]
    if split.scheme == "speaker-folds":
        _refuse_too_few(units, corpus, split.folds, f"expected at least one for each of {split.folds} folds", "folds")
        return [unit for group in _groups(units) for unit in by_hash(group, "fold")[fold :: split.folds]]
    _refuse_too_few(units, corpus, 2, f"`{split.scheme}` holds one out and trains on the others", "scheme")
    return [group[fold % len(group)] for group in _groups(units)]


def _named_speakers(units: Units, corpus: Corpus) -> list[list[str]]:
    """Qualified speakers of each of `groups`."""
    groups = [[f"{corpus.name}:{speaker}" for speaker in group] for group in corpus.split.groups]
    named = [speaker for group in groups for speaker in group]
    unknown = [speaker for speaker in named if speaker not in units]
    repeated = sorted({speaker for speaker in named if named.count(speaker) > 1})
    if unknown or repeated:
        wrong = f"names {listed(unknown)}, unknown there" if unknown else f"names {listed(repeated)} more than once"
        raise SplitError(
            f"corpus {corpus.name}: `split.groups` {wrong}; its speakers are {listed(units, 40)}. Name each as the "
            "corpus does, without the corpus's name, and once."
        )
    return groups


def _dev_speakers(training: Units, corpus: Corpus, fold: int) -> set[str]:
    """The training speakers of each language that are set aside."""
    wanted = corpus.split.dev_speakers
    _refuse_too_few(
        training,
        corpus,
        wanted + 1,
        f"that are not tested in fold {fold}; dev takes {wanted}, and at least one must be left to train on",
        "dev_speakers",
    )
    dev: set[str] = set()
    for language in sorted(frozenset().union(*training.values())):
        speakers = by_hash([name for name, languages in training.items() if language in languages], f"dev {fold}")
        chosen = sum(speaker in dev for speaker in speakers)  # who speaks two languages counts in both
        dev.update([speaker for speaker in speakers if speaker not in dev][: max(wanted - chosen, 0)])
    return dev


def _refuse_too_few(units: Units, corpus: Corpus, least: int, why: str, setting: str) -> None:
    what = "session" if setting == "scheme" and corpus.split.scheme == "leave-one-session-out" else "speaker"
    for language in sorted(frozenset().union(*units.values())):
        found = [unit for unit, languages in units.items() if language in languages]
        if len(found) < least:
            raise SplitError(
                f"corpus {corpus.name} has too few {what}s of language {language}: {len(found)} ({listed(found)}), "
                f"{why}. Change `split.{setting}`, or add {what}s."
            )


def by_hash(names: Iterable[str], salt: str) -> list[str]:
    """Names in an order that looks random and never changes."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{salt}\0{name}".encode()).digest(), name))


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def check(manifest: pa.Table, splits: Splits, config: Experiment) -> None:
    """Refuse splits that would make a result worthless.

    Raises:
        SplitError: a speaker or a recording is in two splits, a language lacks a split, or its train lacks a class.
    """
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(_NAMES.tolist())}
    names, inverse_N = np.unique(splits, return_inverse=True)
    split_N = np.array([numbers[name] for name in names.tolist()], np.int64)[inverse_N]
    _refuse_shared(_Column.of(manifest, "speaker"), split_N, "speaker")
    _refuse_shared(_Column.of(manifest, "audio_sha256"), split_N, "recording", _Column.of(manifest, "utterance"))
    language, emotion = _Column.of(manifest, "language"), _Column.of(manifest, "emotion")
    for code in config.languages:
        here_N = language.isin([code])
        counts = {name: int((here_N & (split_N == numbers[name])).sum()) for name in SPLITS}
        if empty := [name for name in SPLITS if not counts[name]]:
            found = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise SplitError(
                f"language {code} has nothing in {', '.join(empty)}: found {found}. Every language needs train, dev "
                "and test; change the `split` of its corpora, or take it out of `languages`."
            )
        present = emotion.present(np.flatnonzero(here_N & (split_N == _TRAIN)))
        if missing := [name for name in config.emotions if name not in present]:
            raise SplitError(
                f"language {code} has no {', '.join(missing)} in train: found {', '.join(present)} in "
                f"{counts['train']} utterances. Change the `split` of its corpora, map its emotion names with "
                "`emotions`, or take the class out of the experiment's `emotions`."
            )


def _refuse_shared(column: _Column, split_N: _Codes, what: str, shown: _Column | None = None) -> None:
    """Refuse a value that is in more than one of train, dev and test."""
    seen = np.zeros((len(column.names) + 1, len(_NAMES)), np.bool_)
    seen[column.codes, split_N] = True
    shared = np.flatnonzero(seen[:, _TRAIN:].sum(axis=1) > 1)
    if not len(shared):
        return
    lines = []
    for code in sorted(shared.tolist(), key=lambda code: column.names[code])[:5]:
        where = " and ".join(name for name, there in zip(SPLITS, seen[code, _TRAIN:], strict=True) if there)
        if shown is None:
            lines.append(f"{column.names[code]} is in {where}")
        else:
            same = shown.present(np.flatnonzero((column.codes == code) & (split_N != _LEFT_OUT)))
            lines.append(f"{listed(same)} sound the same and are in {where}")
    way_out = (
        "Choose a scheme that keeps speakers apart, or correct the corpus's splits."
        if shown is None
        else "Delete the copies, or give the speaker the same name in both."
    )
    raise SplitError(
        f"{len(shared)} {what}{'s are' if len(shared) > 1 else ' is'} in more than one of train, dev and test:\n  "
        + "\n  ".join(lines)
        + f"\n{way_out}"
    )
