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

from lakd_ray.config import CorpusConfig, Experiment, SplitConfig
from lakd_ray.errors import SplitError
from lakd_ray.labels import SPLITS

SplitNames = npt.NDArray[np.str_]
_IntArray = npt.NDArray[np.int64]
_EXCLUDED, _TRAIN, _DEV, _TEST = range(4)
_SPLIT_NAMES = np.array(["", *SPLITS])
# The folds of Bijoy et al. 2025; CaFE's are those in common use.
_PAPER_SCHEMES: dict[str, dict[str, Any]] = {
    "iemocap": {"scheme": "leave-one-session-out"},
    "fesc": {"scheme": "leave-one-speaker-out"},
    "cafe": {
        "scheme": "speaker-groups",
        "groups": (("01", "07", "08", "10"), ("02", "04", "09", "12"), ("03", "05", "06", "11")),
    },
}

# A speaker or session, and the languages it occurs in.
SplitUnits = dict[str, frozenset[str]]


def assign_splits(manifest: pa.Table, config: Experiment, fold: int | None = None) -> SplitNames:
    """'train', 'dev', 'test' or '' (left out) for every row of the manifest.

    Left out are emotions and languages that the experiment does not name. Each corpus takes the fold modulo its own
    number of folds, so a corpus with fewer folds repeats whole divisions, dev included.

    Raises:
        SplitError: a corpus cannot be divided as its configuration says.
    """
    rows = _ManifestColumns(manifest, config)
    split_N = np.full(manifest.num_rows, _EXCLUDED, np.int8)
    for corpus, rows_N in _iter_corpora(rows, config):
        if corpus.split.scheme == "given":
            split_N[rows_N] = _predefined_splits(rows, corpus, rows_N)
        else:
            split_N[rows_N] = _held_out_splits(rows, corpus, rows_N, config.fold if fold is None else fold)
    return np.asarray(_SPLIT_NAMES[split_N])


def count_folds(manifest: pa.Table, config: Experiment) -> int:
    """Folds until every corpus has been tested whole: those of the corpus with most."""
    rows = _ManifestColumns(manifest, config)
    return max(_num_folds(rows, corpus, rows_N) for corpus, rows_N in _iter_corpora(rows, config))


def speaker_folds(manifest: pa.Table, rows: _IntArray, num_folds: int) -> _IntArray:
    """Which of `count` parts each of some rows falls in, the speakers of each language dealt out evenly.

    Raises:
        SplitError: a language has fewer speakers than there are to be parts.
    """
    table = manifest.select(["speaker", "language"]).take(rows)
    speakers, languages = (np.asarray(table[name].to_pylist(), dtype=str) for name in ("speaker", "language"))
    dealt: dict[str, int] = {}  # who speaks two languages is in one part
    for language in np.unique(languages):
        found = hash_order(np.unique(speakers[languages == language]).tolist(), "part")
        if len(found) < num_folds:
            raise SplitError(
                f"language {language} has {len(found)} training speakers ({format_list(found)}), too few for {num_folds} parts. "
                "Lower `cross_fit` of the distillation loss."
            )
        for number, speaker in enumerate(found):
            dealt.setdefault(speaker, number % num_folds)
    return np.array([dealt[speaker] for speaker in speakers], np.int64)


def _iter_corpora(rows: "_ManifestColumns", config: Experiment) -> Iterator[tuple[CorpusConfig, npt.NDArray[np.intp]]]:
    """Corpora, scheme `paper` spelt out, and their rows."""
    for corpus in config.corpora:
        spelt_out = _resolve_paper_scheme(corpus)
        rows_N = rows.corpus_rows(corpus)
        expected, found = corpus.split.num_folds(corpus.importer), _num_folds(rows, spelt_out, rows_N)
        if expected not in (None, found):
            raise SplitError(
                f"corpus {corpus.name} can be divided into {found} folds, but the paper has {expected}: some of it is "
                f"missing. Complete it, or choose scheme `{spelt_out.split.scheme}`, which takes what is there."
            )
        yield spelt_out, rows_N


def _resolve_paper_scheme(corpus: CorpusConfig) -> CorpusConfig:
    """The corpus with scheme `paper` spelt out."""
    if corpus.split.scheme != "paper":
        return corpus
    if corpus.importer not in _PAPER_SCHEMES:
        raise SplitError(
            f"corpus {corpus.name}: scheme `paper` is for the paper's corpora ({', '.join(_PAPER_SCHEMES)}), and its importer "
            f"is `{corpus.importer}`. Choose another scheme."
        )
    spelt_out = {**_PAPER_SCHEMES[corpus.importer], "dev_speakers": corpus.split.dev_speakers}
    return corpus.model_copy(update={"split": SplitConfig.model_validate(spelt_out)})


@dataclass(frozen=True)
class _Column:
    """A column as numbers: `names[codes[i]]` is the value of row i, and -1 stands for none."""

    codes: _IntArray
    values: list[str]

    @classmethod
    def from_table(cls, manifest: pa.Table, name: str) -> "_Column":
        encoded = pc.cast(manifest[name], pa.large_string()).combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(codes, encoded.dictionary.to_pylist())

    def isin(self, values: Iterable[str]) -> npt.NDArray[np.bool_]:
        wanted = set(values)
        return np.array([*(name in wanted for name in self.values), False])[self.codes]

    def unique_values(self, rows_N: npt.NDArray[np.intp]) -> list[str]:
        """Sorted values of some rows."""
        return sorted(self.values[code] for code in np.unique(self.codes[rows_N]) if code >= 0)


class _ManifestColumns:
    """The manifest's columns, and the rows that the experiment uses."""

    def __init__(self, manifest: pa.Table, config: Experiment) -> None:
        self._columns: dict[str, _Column] = {}
        self._manifest = manifest
        self._selected_N = self["emotion"].isin(config.emotions) & self["language"].isin(config.languages)
        known = [corpus.name for corpus in config.corpora]
        if strange := sorted(set(self["corpus"].values) - set(known)):
            raise SplitError(
                f"the manifest holds corpus {', '.join(strange)}; the experiment has {', '.join(known)}. Make the "
                "manifest again, or add the corpus to `corpora`."
            )

    def __getitem__(self, name: str) -> _Column:
        if name not in self._columns:
            self._columns[name] = _Column.from_table(self._manifest, name)
        return self._columns[name]

    def corpus_rows(self, corpus: CorpusConfig) -> npt.NDArray[np.intp]:
        """Rows of a corpus that the experiment uses."""
        rows_N = np.flatnonzero(self["corpus"].isin([corpus.name]) & self._selected_N)
        if not len(rows_N):
            raise SplitError(
                f"the manifest has no utterances of corpus {corpus.name} with the experiment's languages and emotions. "
                "Make the manifest again, or take the corpus out of `corpora`."
            )
        return rows_N

    def units(self, rows_N: npt.NDArray[np.intp], column: str) -> SplitUnits:
        """Speakers or sessions among some rows, each with its languages."""
        units, languages = self[column], self["language"]
        pairs = np.unique(units.codes[rows_N] * len(languages.values) + languages.codes[rows_N])
        found: dict[str, set[str]] = defaultdict(set)
        for pair in pairs.tolist():
            unit, language = divmod(pair, len(languages.values))
            found[units.values[unit]].add(languages.values[language])
        return {unit: frozenset(found[unit]) for unit in sorted(found)}


def _predefined_splits(
    rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]
) -> npt.NDArray[np.int8]:
    column = rows["split"]
    strange = [name for name in column.unique_values(rows_N) if name not in SPLITS]
    without = int((column.codes[rows_N] < 0).sum())
    if strange or without:
        raise SplitError(
            f"corpus {corpus.name}: scheme `given` expects a split of {', '.join(SPLITS)} for every utterance; found "
            f"{format_list(strange) or 'no other name'}, and none for {without} utterances. Correct the corpus's manifest, "
            "or choose another scheme."
        )
    numbers = {name: number for number, name in enumerate(_SPLIT_NAMES.tolist())}
    return np.array([*(numbers.get(name, 0) for name in column.values), 0], np.int8)[column.codes[rows_N]]


def _held_out_splits(
    rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp], fold: int
) -> npt.NDArray[np.int8]:
    """Splits of a corpus whose test is one fold of its speakers or sessions."""
    fold %= _num_folds(rows, corpus, rows_N)
    if corpus.split.scheme == "leave-one-session-out":
        test_N = rows["session"].isin(_test_units(_session_units(rows, corpus, rows_N), corpus, fold))[rows_N]
    else:
        test_N = rows["speaker"].isin(_test_units(rows.units(rows_N, "speaker"), corpus, fold))[rows_N]
    dev = _choose_dev_speakers(rows.units(rows_N[~test_N], "speaker"), corpus, fold)
    dev_N = rows["speaker"].isin(dev)[rows_N]
    return np.select([test_N, dev_N], [_TEST, _DEV], _TRAIN).astype(np.int8)


def _num_folds(rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]) -> int:
    """How many folds a corpus has."""
    if known := corpus.split.num_folds(corpus.importer):
        return known
    sessions = corpus.split.scheme == "leave-one-session-out"
    units = _session_units(rows, corpus, rows_N) if sessions else rows.units(rows_N, "speaker")
    return max(len(group) for group in _group_by_languages(units))


def _session_units(rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]) -> SplitUnits:
    without = rows_N[rows["session"].codes[rows_N] < 0]
    if len(without):
        raise SplitError(
            f"corpus {corpus.name}: scheme `leave-one-session-out` needs the session of every utterance; "
            f"{len(without)} of {len(rows_N)} have none, for instance those of speaker "
            f"{rows['speaker'].unique_values(without)[0]}. Add the column to the corpus, or choose another scheme."
        )
    return rows.units(rows_N, "session")


def _group_by_languages(units: SplitUnits) -> list[list[str]]:
    """Units by the set of languages they occur in."""
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for unit, languages in units.items():
        groups[languages].append(unit)
    return list(groups.values())


def _test_units(units: SplitUnits, corpus: CorpusConfig, fold: int) -> list[str]:
    """The speakers or sessions that a fold holds out."""
    split = corpus.split
    if split.scheme == "speaker-groups":
        return _configured_speaker_groups(units, corpus)[fold]
    if split.scheme == "speaker-folds":
        _require_enough_units(
            units, corpus, split.folds, f"expected at least one for each of {split.folds} folds", "folds"
        )
        return [unit for group in _group_by_languages(units) for unit in hash_order(group, "fold")[fold :: split.folds]]
    _require_enough_units(units, corpus, 2, f"`{split.scheme}` holds one out and trains on the others", "scheme")
    return [group[fold % len(group)] for group in _group_by_languages(units)]


def _configured_speaker_groups(units: SplitUnits, corpus: CorpusConfig) -> list[list[str]]:
    """Qualified speakers of each of `groups`."""
    groups = [[f"{corpus.name}:{speaker}" for speaker in group] for group in corpus.split.groups]
    named = [speaker for group in groups for speaker in group]
    unknown = [speaker for speaker in named if speaker not in units]
    repeated = sorted({speaker for speaker in named if named.count(speaker) > 1})
    if unknown or repeated:
        wrong = (
            f"names {format_list(unknown)}, unknown there"
            if unknown
            else f"names {format_list(repeated)} more than once"
        )
        raise SplitError(
            f"corpus {corpus.name}: `split.groups` {wrong}; its speakers are {format_list(units, 40)}. Name each as the "
            "corpus does, without the corpus's name, and once."
        )
    return groups


def _choose_dev_speakers(training: SplitUnits, corpus: CorpusConfig, fold: int) -> set[str]:
    """The training speakers of each language that are set aside."""
    wanted = corpus.split.dev_speakers
    _require_enough_units(
        training,
        corpus,
        wanted + 1,
        f"that are not tested in fold {fold}; dev takes {wanted}, and at least one must be left to train on",
        "dev_speakers",
    )
    dev: set[str] = set()
    for language in sorted(frozenset().union(*training.values())):
        speakers = hash_order([name for name, languages in training.items() if language in languages], f"dev {fold}")
        chosen = sum(speaker in dev for speaker in speakers)  # who speaks two languages counts in both
        dev.update([speaker for speaker in speakers if speaker not in dev][: max(wanted - chosen, 0)])
    return dev


def _require_enough_units(units: SplitUnits, corpus: CorpusConfig, min_count: int, reason: str, setting: str) -> None:
    what = "session" if setting == "scheme" and corpus.split.scheme == "leave-one-session-out" else "speaker"
    for language in sorted(frozenset().union(*units.values())):
        found = [unit for unit, languages in units.items() if language in languages]
        if len(found) < min_count:
            raise SplitError(
                f"corpus {corpus.name} has too few {what}s of language {language}: {len(found)} ({format_list(found)}), "
                f"{reason}. Change `split.{setting}`, or add {what}s."
            )


def hash_order(names: Iterable[str], salt: str) -> list[str]:
    """Names in an order that looks random and never changes."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{salt}\0{name}".encode()).digest(), name))


def format_list(names: Iterable[str], max_count: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:max_count]) + (f" and {len(every) - max_count} more" if len(every) > max_count else "")


def check_splits(manifest: pa.Table, splits: SplitNames, config: Experiment) -> None:
    """Refuse splits that would make a result worthless.

    Raises:
        SplitError: a speaker or a recording is in two splits, a language lacks a split, or its train lacks a class.
    """
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(_SPLIT_NAMES.tolist())}
    names, inverse_N = np.unique(splits, return_inverse=True)
    split_N = np.array([numbers[name] for name in names.tolist()], np.int64)[inverse_N]
    _require_disjoint_splits(_Column.from_table(manifest, "speaker"), split_N, "speaker")
    _require_disjoint_splits(
        _Column.from_table(manifest, "audio_sha256"), split_N, "recording", _Column.from_table(manifest, "utterance")
    )
    language, emotion = _Column.from_table(manifest, "language"), _Column.from_table(manifest, "emotion")
    for code in config.languages:
        here_N = language.isin([code])
        counts = {name: int((here_N & (split_N == numbers[name])).sum()) for name in SPLITS}
        if empty := [name for name in SPLITS if not counts[name]]:
            found = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise SplitError(
                f"language {code} has nothing in {', '.join(empty)}: found {found}. Every language needs train, dev "
                "and test; change the `split` of its corpora, or take it out of `languages`."
            )
        present = emotion.unique_values(np.flatnonzero(here_N & (split_N == _TRAIN)))
        if missing := [name for name in config.emotions if name not in present]:
            raise SplitError(
                f"language {code} has no {', '.join(missing)} in train: found {', '.join(present)} in "
                f"{counts['train']} utterances. Change the `split` of its corpora, map its emotion names with "
                "`emotions`, or take the class out of the experiment's `emotions`."
            )


def _require_disjoint_splits(
    column: _Column, split_N: _IntArray, item_name: str, display_column: _Column | None = None
) -> None:
    """Refuse a value that is in more than one of train, dev and test."""
    seen = np.zeros((len(column.values) + 1, len(_SPLIT_NAMES)), np.bool_)
    seen[column.codes, split_N] = True
    shared = np.flatnonzero(seen[:, _TRAIN:].sum(axis=1) > 1)
    if not len(shared):
        return
    lines = []
    for code in sorted(shared.tolist(), key=lambda code: column.values[code])[:5]:
        where = " and ".join(name for name, there in zip(SPLITS, seen[code, _TRAIN:], strict=True) if there)
        if display_column is None:
            lines.append(f"{column.values[code]} is in {where}")
        else:
            same = display_column.unique_values(np.flatnonzero((column.codes == code) & (split_N != _EXCLUDED)))
            lines.append(f"{format_list(same)} sound the same and are in {where}")
    way_out = (
        "Choose a scheme that keeps speakers apart, or correct the corpus's splits."
        if display_column is None
        else "Delete the copies, or give the speaker the same name in both."
    )
    raise SplitError(
        f"{len(shared)} {item_name}{'s are' if len(shared) > 1 else ' is'} in more than one of train, dev and test:\n  "
        + "\n  ".join(lines)
        + f"\n{way_out}"
    )
