"""Assign utterances to train, dev and test for one fold.

The splits depend on the content of the manifest, not on the order of its rows. A corpus is split by speakers or
sessions. Speakers with the same set of languages are distributed over the folds as one group, so that every fold has
speakers of every language. Pseudo-random choices sort by SHA-256, which is stable across machines and versions.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakd_ray.config import CorpusConfig, Experiment, SplitConfig
from lakd_ray.data.category_column import CategoryColumn
from lakd_ray.data.speaker_aliases import first_names
from lakd_ray.errors import SplitError
from lakd_ray.labels import SPLITS

SplitNames = npt.NDArray[np.str_]
EXCLUDED, TRAIN, DEV, TEST = range(4)
SPLIT_NAMES = np.array(["", *SPLITS])
# The folds of Bijoy et al. 2025; CaFE's are those in common use.
_PAPER_SCHEMES: dict[str, dict[str, Any]] = {
    "iemocap": {"scheme": "leave-one-session-out"},
    "fesc": {"scheme": "leave-one-speaker-out"},
    "cafe": {
        "scheme": "speaker-groups",
        "groups": (("01", "07", "08", "10"), ("02", "04", "09", "12"), ("03", "05", "06", "11")),
    },
}

# Speakers or sessions, each with the languages it occurs in.
SplitUnits = dict[str, frozenset[str]]


def assign_splits(manifest: pa.Table, config: Experiment, fold: int | None = None) -> SplitNames:
    """Return 'train', 'dev', 'test' or '' (not used) for every row of the manifest.

    Rows of emotions and languages that the experiment does not have are not used. Each corpus uses the fold modulo its
    own number of folds, so a corpus with fewer folds repeats its splits, including dev. A speaker with several names
    (`speaker_aliases`) is used only in the last of train, dev and test that one of the names is in.

    Raises:
        SplitError: a corpus cannot be split as configured.
    """
    rows = _ManifestColumns(manifest, config)
    split_N = np.full(manifest.num_rows, EXCLUDED, np.int8)
    for corpus, rows_N in _iter_corpora(rows, config):
        if corpus.split.scheme == "given":
            split_N[rows_N] = _predefined_splits(rows, corpus, rows_N)
        else:
            split_N[rows_N] = _held_out_splits(rows, corpus, rows_N, config.fold if fold is None else fold)
    _exclude_aliased_speakers(rows["speaker"], split_N, config)
    return np.asarray(SPLIT_NAMES[split_N])


def _exclude_aliased_speakers(speakers: CategoryColumn, split_N: npt.NDArray[np.int8], config: Experiment) -> None:
    """Exclude a person's utterances in train if others are in dev or test, and in dev if others are in test.

    Corpora are split independently, so a person's names may be in different splits. Each utterance is still tested in
    the fold in which its own corpus tests it.
    """
    for name in config.speaker_aliases:
        rows_N = np.flatnonzero(speakers.isin([name]))
        used_N = split_N[rows_N]
        if len(used_N):
            split_N[rows_N[used_N < used_N.max()]] = EXCLUDED


def count_folds(manifest: pa.Table, config: Experiment) -> int:
    """Return the number of folds that test every corpus completely, which is the maximum over the corpora."""
    rows = _ManifestColumns(manifest, config)
    return max(_num_folds(rows, corpus, rows_N) for corpus, rows_N in _iter_corpora(rows, config))


def speaker_folds(manifest: pa.Table, rows: npt.NDArray[np.int64], num_cross_fit_folds: int) -> npt.NDArray[np.int64]:
    """Return the cross-fitting fold of each row, with the speakers of each language distributed evenly over the folds.

    Raises:
        SplitError: a language has fewer speakers than there are folds.
    """
    table = manifest.select(["speaker", "language"]).take(rows)
    speakers, languages = (np.asarray(table[name].to_pylist(), dtype=str) for name in ("speaker", "language"))
    fold_of: dict[str, int] = {}  # a speaker of two languages is in one fold
    for language in np.unique(languages):
        names = hash_order(np.unique(speakers[languages == language]).tolist(), "part")
        if len(names) < num_cross_fit_folds:
            raise SplitError(
                f"language {language} has {len(names)} training speakers ({format_list(names)}), too few for "
                f"{num_cross_fit_folds} cross-fitting folds. Lower `cross_fit` of the distillation loss."
            )
        for number, speaker in enumerate(names):
            fold_of.setdefault(speaker, number % num_cross_fit_folds)
    return np.array([fold_of[speaker] for speaker in speakers], np.int64)


def _iter_corpora(rows: "_ManifestColumns", config: Experiment) -> Iterator[tuple[CorpusConfig, npt.NDArray[np.intp]]]:
    """Yield each corpus, with scheme `paper` resolved, and its rows."""
    for corpus in config.corpora:
        resolved = _resolve_paper_scheme(corpus)
        rows_N = rows.corpus_rows(corpus)
        expected, num_folds = corpus.split.num_folds(corpus.importer), _num_folds(rows, resolved, rows_N)
        if expected not in (None, num_folds):
            raise SplitError(
                f"corpus {corpus.name} has {num_folds} folds, but the paper has {expected}: a part of the corpus is "
                f"missing. Complete it, or choose scheme `{resolved.split.scheme}`, which uses the existing part."
            )
        yield resolved, rows_N


def _resolve_paper_scheme(corpus: CorpusConfig) -> CorpusConfig:
    """Return the corpus with scheme `paper` replaced by the actual scheme."""
    if corpus.split.scheme != "paper":
        return corpus
    if corpus.importer not in _PAPER_SCHEMES:
        raise SplitError(
            f"corpus {corpus.name}: scheme `paper` is for the paper's corpora ({', '.join(_PAPER_SCHEMES)}), but the "
            f"importer is `{corpus.importer}`. Choose a different scheme."
        )
    split = {**_PAPER_SCHEMES[corpus.importer], "dev_speakers": corpus.split.dev_speakers}
    return corpus.model_copy(update={"split": SplitConfig.model_validate(split)})


class _ManifestColumns:
    """The columns of the manifest, and the rows that the experiment uses."""

    def __init__(self, manifest: pa.Table, config: Experiment) -> None:
        self._columns: dict[str, CategoryColumn] = {}
        self._manifest = manifest
        self.first_names = first_names(config)
        self._selected_N = self["emotion"].isin(config.emotions) & self["language"].isin(config.languages)
        known = [corpus.name for corpus in config.corpora]
        if unexpected := sorted(set(self["corpus"].values) - set(known)):
            raise SplitError(
                f"the manifest contains corpora that the experiment does not list: {', '.join(unexpected)} (it lists "
                f"{', '.join(known)}). Run `prepare` again, or add them to `corpora`."
            )

    def __getitem__(self, name: str) -> CategoryColumn:
        if name not in self._columns:
            self._columns[name] = CategoryColumn.from_table(self._manifest, name)
        return self._columns[name]

    def corpus_rows(self, corpus: CorpusConfig) -> npt.NDArray[np.intp]:
        """Return the rows of a corpus that the experiment uses."""
        rows_N = np.flatnonzero(self["corpus"].isin([corpus.name]) & self._selected_N)
        if not len(rows_N):
            raise SplitError(
                f"the manifest has no utterances of corpus {corpus.name} with the experiment's languages and emotions. "
                "Run `prepare` again, or remove the corpus from `corpora`."
            )
        return rows_N

    def units(self, rows_N: npt.NDArray[np.intp], column: str) -> SplitUnits:
        """Return the speakers or sessions of some rows, each with its languages."""
        units, languages = self[column], self["language"]
        pairs = np.unique(units.codes[rows_N] * len(languages.values) + languages.codes[rows_N])
        languages_of: dict[str, set[str]] = defaultdict(set)
        for pair in pairs.tolist():
            unit, language = divmod(pair, len(languages.values))
            languages_of[units.values[unit]].add(languages.values[language])
        return {unit: frozenset(languages_of[unit]) for unit in sorted(languages_of)}


def _predefined_splits(
    rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]
) -> npt.NDArray[np.int8]:
    column = rows["split"]
    unexpected = [name for name in column.unique_values(rows_N) if name not in SPLITS]
    num_missing = int((column.codes[rows_N] < 0).sum())
    problems = [f"the invalid names {format_list(unexpected)}"] if unexpected else []
    problems += [f"{num_missing} utterances without a split"] if num_missing else []
    if problems:
        raise SplitError(
            f"corpus {corpus.name}: scheme `given` expects a split of {', '.join(SPLITS)} for every utterance; found "
            f"{' and '.join(problems)}. Correct the corpus's manifest, or choose a different scheme."
        )
    numbers = {name: number for number, name in enumerate(SPLIT_NAMES.tolist())}
    return np.array([*(numbers.get(name, 0) for name in column.values), 0], np.int8)[column.codes[rows_N]]


def _held_out_splits(
    rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp], fold: int
) -> npt.NDArray[np.int8]:
    """Return the splits of a corpus, with one fold of its speakers or sessions as test."""
    fold %= _num_folds(rows, corpus, rows_N)
    if corpus.split.scheme == "leave-one-session-out":
        test_N = rows["session"].isin(_test_units(_session_units(rows, corpus, rows_N), corpus, fold))[rows_N]
    else:
        test_N = rows["speaker"].isin(_test_units(rows.units(rows_N, "speaker"), corpus, fold, rows.first_names))[
            rows_N
        ]
    dev = _choose_dev_speakers(rows.units(rows_N[~test_N], "speaker"), corpus, fold)
    dev_N = rows["speaker"].isin(dev)[rows_N]
    return np.select([test_N, dev_N], [TEST, DEV], TRAIN).astype(np.int8)


def _num_folds(rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]) -> int:
    """Return the number of folds of a corpus."""
    if configured := corpus.split.num_folds(corpus.importer):
        return configured
    by_session = corpus.split.scheme == "leave-one-session-out"
    units = _session_units(rows, corpus, rows_N) if by_session else rows.units(rows_N, "speaker")
    return max(len(group) for group in _group_by_languages(units))


def _session_units(rows: _ManifestColumns, corpus: CorpusConfig, rows_N: npt.NDArray[np.intp]) -> SplitUnits:
    rows_without = rows_N[rows["session"].codes[rows_N] < 0]
    if len(rows_without):
        raise SplitError(
            f"corpus {corpus.name}: scheme `leave-one-session-out` needs the session of every utterance; "
            f"{len(rows_without)} of {len(rows_N)} have none, for example those of speaker "
            f"{rows['speaker'].unique_values(rows_without)[0]}. Add the column to the corpus, or choose a different "
            "scheme."
        )
    return rows.units(rows_N, "session")


def _group_by_languages(units: SplitUnits) -> list[list[str]]:
    """Group units by the set of languages they occur in."""
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for unit, languages in units.items():
        groups[languages].append(unit)
    return list(groups.values())


def _test_units(
    units: SplitUnits, corpus: CorpusConfig, fold: int, first_names: Mapping[str, str] | None = None
) -> list[str]:
    """Return the speakers or sessions that a fold holds out for test."""
    split = corpus.split
    if split.scheme == "speaker-groups":
        return _configured_speaker_groups(units, corpus, first_names or {})[fold]
    if split.scheme == "speaker-folds":
        _require_enough_units(
            units, corpus, split.folds, f", expected at least one for each of {split.folds} folds", "folds"
        )
        return [unit for group in _group_by_languages(units) for unit in hash_order(group, "fold")[fold :: split.folds]]
    _require_enough_units(units, corpus, 2, f", but `{split.scheme}` holds one out and trains on the rest", "scheme")
    return [group[fold % len(group)] for group in _group_by_languages(units)]


def _configured_speaker_groups(
    units: SplitUnits, corpus: CorpusConfig, first_names: Mapping[str, str]
) -> list[list[str]]:
    """Return the qualified speaker names of each group in `split.groups`."""
    qualified = [[f"{corpus.name}:{speaker}" for speaker in group] for group in corpus.split.groups]
    groups = [list(dict.fromkeys(first_names.get(name, name) for name in group)) for group in qualified]
    listed = [speaker for group in groups for speaker in group]
    unknown = [speaker for speaker in listed if speaker not in units]
    repeated = sorted({speaker for speaker in listed if listed.count(speaker) > 1})
    if unknown or repeated:
        problem = (
            f"lists unknown speakers {format_list(unknown)}"
            if unknown
            else f"lists {format_list(repeated)} more than once"
        )
        raise SplitError(
            f"corpus {corpus.name}: `split.groups` {problem}; its speakers are {format_list(units, 40)}. List each "
            "speaker once, without the name of the corpus."
        )
    return groups


def _choose_dev_speakers(training: SplitUnits, corpus: CorpusConfig, fold: int) -> set[str]:
    """Choose the dev speakers of each language among the training speakers."""
    target = corpus.split.dev_speakers
    _require_enough_units(
        training,
        corpus,
        target + 1,
        f" are not in test of fold {fold}, but dev takes {target} and train needs at least one",
        "dev_speakers",
    )
    dev: set[str] = set()
    for language in sorted(frozenset().union(*training.values())):
        speakers = hash_order([name for name, languages in training.items() if language in languages], f"dev {fold}")
        num_chosen = sum(speaker in dev for speaker in speakers)  # a speaker of two languages counts in both
        dev.update([speaker for speaker in speakers if speaker not in dev][: max(target - num_chosen, 0)])
    return dev


def _require_enough_units(units: SplitUnits, corpus: CorpusConfig, min_count: int, reason: str, setting: str) -> None:
    unit_name = "session" if setting == "scheme" and corpus.split.scheme == "leave-one-session-out" else "speaker"
    for language in sorted(frozenset().union(*units.values())):
        names = [unit for unit, languages in units.items() if language in languages]
        if len(names) < min_count:
            raise SplitError(
                f"corpus {corpus.name} has too few {unit_name}s of language {language}: {len(names)} "
                f"({format_list(names)}){reason}. Change `split.{setting}`, or add {unit_name}s."
            )


def hash_order(names: Iterable[str], salt: str) -> list[str]:
    """Sort names in a pseudo-random order that depends only on the names and the salt."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{salt}\0{name}".encode()).digest(), name))


def format_list(names: Iterable[str], max_count: int = 5) -> str:
    """Format the first names of a list, and the number of the remaining ones."""
    listed = list(names)
    rest = f" and {len(listed) - max_count} more" if len(listed) > max_count else ""
    return ", ".join(listed[:max_count]) + rest
