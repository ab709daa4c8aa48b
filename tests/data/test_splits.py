"""Test the invariants of train, dev and test in every fold, and the splits that are rejected."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lakd_ray.config import Experiment
from lakd_ray.data.schema import MANIFEST_SCHEMA
from lakd_ray.data.split_checks import check_splits
from lakd_ray.data.splits import assign_splits, count_folds
from lakd_ray.errors import SplitError
from lakd_ray.labels import PAPER_EMOTIONS

RECIPE = {"model": {"pretrained": "x"}}


def experiment(languages: tuple[str, ...] = ("en",), fold: int = 0, **splits: dict[str, Any]) -> Experiment:
    """Return an experiment with one corpus for each keyword argument."""
    return Experiment.model_validate(
        {
            "name": "t",
            "languages": languages,
            "fold": fold,
            "corpora": [{"name": name, "root": "x", "split": split} for name, split in splits.items()],
            "teacher": RECIPE,
            "student": RECIPE,
        }
    )


def row(corpus: str, language: str, speaker: str, emotion: str, take: int = 0, **rest: Any) -> dict[str, Any]:
    name = f"{corpus}/{speaker}-{language}-{emotion}-{take}"
    return {
        "utterance": name,
        "corpus": corpus,
        "language": language,
        "speaker": f"{corpus}:{speaker}",
        "emotion": emotion,
        "source": name,
        "num_samples": 16_000,
        "audio_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "shard": "0.parquet",
        "row_group": 0,
        "row": 0,
        **rest,
    }


def rows(corpus: str, language: str, speakers: int, *, prefix: str = "s", sessions: int = 0) -> list[dict[str, Any]]:
    return [
        row(
            corpus,
            language,
            f"{prefix}{number:02}",
            emotion,
            take,
            session=f"{prefix}{number % sessions}" if sessions else None,
        )
        for number in range(speakers)
        for emotion in PAPER_EMOTIONS
        for take in range(number % 3 + 1)
    ]


def table(*parts: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([item for part in parts for item in part], schema=MANIFEST_SCHEMA)


def times_tested(manifest: pa.Table, config: Experiment) -> Counter[str]:
    """Return the number of folds that have each speaker in test."""
    speakers = np.array(manifest["speaker"].to_pylist())
    counts: Counter[str] = Counter()
    for fold in range(count_folds(manifest, config)):
        split_N = assign_splits(manifest, config, fold)
        check_splits(manifest, split_N, config)
        counts.update(set(speakers[split_N == "test"].tolist()))
    return counts


@pytest.mark.parametrize(
    ("split", "folds"),
    [
        ({"scheme": "speaker-folds", "folds": 4}, 4),
        ({"scheme": "speaker-folds", "folds": 5, "dev_speakers": 1}, 5),
        ({"scheme": "leave-one-speaker-out"}, 10),
        ({"scheme": "leave-one-session-out"}, 5),
        (
            {
                "scheme": "speaker-groups",
                "groups": [[f"s0{number}" for number in group] for group in ("01234", "56789")],
            },
            2,
        ),
    ],
)
def test_each_speaker_is_tested_exactly_once(split: dict[str, Any], folds: int) -> None:
    manifest, config = table(rows("a", "en", 10, sessions=5)), experiment(a=split)
    assert count_folds(manifest, config) == folds
    assert times_tested(manifest, config) == {f"a:s{number:02}": 1 for number in range(10)}


def test_union_is_complete_and_dev_has_the_configured_size() -> None:
    manifest = table(rows("a", "en", 10), rows("a", "fi", 11, prefix="f"))
    config = experiment(("en", "fi"), a={"dev_speakers": 3})
    for fold in range(4):
        split_N = assign_splits(manifest, config, fold)
        assert set(split_N.tolist()) == {"train", "dev", "test"}
        for language in ("en", "fi"):
            in_language = np.array(manifest["language"].to_pylist()) == language
            speakers = np.array(manifest["speaker"].to_pylist())
            by_split = {
                name: set(speakers[in_language & (split_N == name)].tolist()) for name in ("train", "dev", "test")
            }
            assert len(by_split["dev"]) == 3
            assert len(by_split["test"]) in (2, 3)
            assert sum(map(len, by_split.values())) == len(set().union(*by_split.values()))


def test_dev_depends_on_the_fold() -> None:
    manifest, config = table(rows("a", "en", 12)), experiment(a={})
    speakers = np.array(manifest["speaker"].to_pylist())
    devs = {frozenset(speakers[assign_splits(manifest, config, fold) == "dev"].tolist()) for fold in range(4)}
    assert len(devs) > 1


def test_splits_do_not_depend_on_the_order_of_rows() -> None:
    manifest = table(rows("a", "en", 9, sessions=3), rows("b", "fi", 8), rows("b", "fr", 7, prefix="f"))
    config = experiment(("en", "fi", "fr"), fold=1, a={"scheme": "leave-one-session-out"}, b={})
    order = np.random.default_rng(0).permutation(manifest.num_rows)
    expected = assign_splits(manifest, config)
    assert (assign_splits(manifest, config) == expected).all()
    assert (assign_splits(manifest.take(order), config) == expected[order]).all()
    chunked = pa.concat_tables([manifest.slice(0, 7), manifest.slice(7)])
    assert (assign_splits(chunked, config) == expected).all()


def test_splits_never_change() -> None:
    """If the same configuration gave different splits, results would not be comparable with stored ones."""
    manifest, config = table(rows("a", "en", 8)), experiment(a={})
    speakers = np.array(manifest["speaker"].to_pylist())
    split_N = assign_splits(manifest, config, 1)
    speakers_of = {name: sorted(set(speakers[split_N == name].tolist())) for name in ("dev", "test")}
    assert speakers_of == {"dev": ["a:s03", "a:s04"], "test": ["a:s00", "a:s01"]}


def test_adding_a_corpus_or_language_does_not_move_speakers() -> None:
    single = table(rows("a", "en", 8))
    extended = table(rows("a", "en", 8), rows("a", "fi", 5, prefix="f"), rows("b", "en", 6))
    expected = assign_splits(single, experiment(a={}), 2)
    splits = assign_splits(extended, experiment(("en", "fi"), a={}, b={}), 2)
    assert (splits[: single.num_rows] == expected).all()


def test_fold_is_modulo_the_number_of_folds_of_each_corpus() -> None:
    manifest = table(rows("a", "en", 10, sessions=5), rows("b", "fi", 9))
    config = experiment(
        ("en", "fi"), a={"scheme": "leave-one-session-out"}, b={"scheme": "leave-one-speaker-out", "dev_speakers": 1}
    )
    assert count_folds(manifest, config) == 9
    english = np.array(manifest["language"].to_pylist()) == "en"
    assert (assign_splits(manifest, config, 7)[english] == assign_splits(manifest, config, 2)[english]).all()
    assert (assign_splits(manifest, config, 7)[~english] != assign_splits(manifest, config, 2)[~english]).any()


def test_leave_one_out_gives_every_language_a_test_split() -> None:
    manifest = table(rows("a", "en", 6), rows("a", "fi", 4, prefix="f"))
    config = experiment(("en", "fi"), a={"scheme": "leave-one-speaker-out"})
    assert count_folds(manifest, config) == 6
    counts = times_tested(manifest, config)
    assert all(counts[f"a:s0{number}"] == 1 for number in range(6))


def test_other_languages_and_emotions_are_not_used() -> None:
    manifest = table(rows("a", "en", 8), rows("a", "de", 8, prefix="d"), [row("a", "en", "s00", "disgust")])
    split_N = assign_splits(manifest, experiment(a={}))
    languages, emotions = manifest["language"].to_pylist(), manifest["emotion"].to_pylist()
    for split, language, emotion in zip(split_N.tolist(), languages, emotions, strict=True):
        assert (split == "") == (language == "de" or emotion == "disgust")


def test_a_bilingual_speaker_is_in_one_split() -> None:
    both = [*rows("a", "en", 8, prefix="b"), *rows("a", "fi", 8, prefix="b")]
    manifest = table(both, rows("a", "en", 5), rows("a", "fi", 4, prefix="f"))
    config = experiment(("en", "fi"), a={})
    assert set(times_tested(manifest, config).values()) == {1}


def test_predefined_splits_are_used() -> None:
    parts = [
        row("a", "en", f"s{split}", emotion, split=split)
        for split in ("train", "dev", "test")
        for emotion in PAPER_EMOTIONS
    ]
    manifest, config = table(parts), experiment(a={"scheme": "given"})
    split_N = assign_splits(manifest, config, 5)
    assert split_N.tolist() == manifest["split"].to_pylist()
    check_splits(manifest, split_N, config)
    assert count_folds(manifest, config) == 1


def test_predefined_splits_with_other_names_or_gaps_are_rejected() -> None:
    manifest = table([row("a", "en", "s1", "anger", split="valid"), row("a", "en", "s2", "anger")])
    with pytest.raises(SplitError, match="found the invalid names valid and 1 utterances without a split"):
        assign_splits(manifest, experiment(a={"scheme": "given"}))


@pytest.mark.parametrize(
    ("split", "speakers", "message"),
    [
        ({"folds": 5}, 4, r"too few speakers of language en: 4 \(a:s00, .*5 folds.*`split.folds`"),
        (
            {"folds": 2, "dev_speakers": 2},
            4,
            r"too few speakers of language en: 2 .*not in test of fold 0, but dev takes",
        ),
        ({"scheme": "leave-one-speaker-out"}, 1, r"too few speakers of language en: 1 \(a:s00\)"),
        ({"scheme": "leave-one-session-out"}, 5, "needs the session of every utterance; 36 of 36 have none.*a:s00"),
        (
            {"scheme": "speaker-groups", "groups": [["s00"], ["1"]]},
            5,
            "lists unknown speakers a:1; its speakers are a:s00",
        ),
        ({"scheme": "speaker-groups", "groups": [["s00"], ["s00"]]}, 5, "lists a:s00 more than once"),
    ],
)
def test_impossible_splits_are_rejected(split: dict[str, Any], speakers: int, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        assign_splits(table(rows("a", "en", speakers)), experiment(a=split))


def test_a_single_session_cannot_be_held_out() -> None:
    manifest = table(rows("a", "en", 5, sessions=1))
    with pytest.raises(SplitError, match=r"too few sessions of language en: 1 \(s0\)"):
        assign_splits(manifest, experiment(a={"scheme": "leave-one-session-out"}))


def test_corpora_of_manifest_and_experiment_must_match() -> None:
    manifest = table(rows("a", "en", 8))
    with pytest.raises(SplitError, match=r"that the experiment does not list: a \(it lists b\)"):
        assign_splits(manifest, experiment(b={}))
    with pytest.raises(SplitError, match="no utterances of corpus b"):
        assign_splits(manifest, experiment(a={}, b={}))
    with pytest.raises(SplitError, match="no utterances of corpus a"):
        count_folds(manifest.slice(0, 0), experiment(a={}))


# --- check_splits


def rows_and_experiment(speakers: int = 8) -> tuple[list[dict[str, Any]], Experiment]:
    return rows("a", "en", speakers), experiment(a={})


def test_check_rejects_a_shared_speaker() -> None:
    parts, config = rows_and_experiment()
    for number, part in enumerate(parts):
        part["split"] = ("train", "dev", "test")[number % 3] if part["speaker"] == "a:s03" else "train"
    manifest = table(parts)
    split_N = np.array(manifest["split"].to_pylist())
    with pytest.raises(SplitError, match=r"1 speaker is in more than one .*\n  a:s03 is in train and dev and test"):
        check_splits(manifest, split_N, config)


def test_check_finds_speakers_that_sessions_share() -> None:
    manifest = table(
        [
            row("a", "en", f"s{(n + t) % 6}", e, n * 9 + t, session=str(n))
            for n in range(4)
            for t in range(4)
            for e in PAPER_EMOTIONS
        ]
    )
    config = experiment(a={"scheme": "leave-one-session-out", "dev_speakers": 1})
    with pytest.raises(SplitError, match="speakers are in more than one"):
        check_splits(manifest, assign_splits(manifest, config), config)


def test_check_rejects_a_shared_recording() -> None:
    parts, config = rows_and_experiment()
    split_N = assign_splits(table(parts), config)
    train, test = int(np.flatnonzero(split_N == "train")[0]), int(np.flatnonzero(split_N == "test")[0])
    parts[test]["audio_sha256"] = parts[train]["audio_sha256"]
    with pytest.raises(SplitError, match="1 recording is in more than one") as caught:
        check_splits(table(parts), split_N, config)
    assert parts[test]["utterance"] in str(caught.value) and parts[train]["utterance"] in str(caught.value)


def test_check_allows_copies_within_a_split_and_in_unused_rows() -> None:
    parts, config = rows_and_experiment()
    split_N = assign_splits(table(parts), config)
    first, second = np.flatnonzero(split_N == "train")[:2].tolist()
    parts[second]["audio_sha256"] = parts[first]["audio_sha256"]
    parts.append(row("a", "en", "s00", "disgust", audio_sha256=parts[first]["audio_sha256"]))
    check_splits(table(parts), assign_splits(table(parts), config), config)


@pytest.mark.parametrize("empty", ["train", "dev", "test"])
def test_check_rejects_an_empty_split(empty: str) -> None:
    parts, config = rows_and_experiment()
    split_N = assign_splits(table(parts), config)
    split_N[split_N == empty] = ""
    with pytest.raises(SplitError, match=f"language en has no utterances in {empty}: found"):
        check_splits(table(parts), split_N, config)


def test_check_rejects_a_language_without_a_corpus_and_a_missing_class() -> None:
    parts, _ = rows_and_experiment()
    config = experiment(("en", "fi"), a={})
    with pytest.raises(SplitError, match="language fi has no utterances in train, dev, test"):
        check_splits(table(parts), assign_splits(table(parts), config), config)
    few, config = table([part for part in parts if part["emotion"] != "sadness"]), experiment(a={})
    with pytest.raises(SplitError, match="language en has no sadness in train: found anger, happiness, neutral"):
        check_splits(few, assign_splits(few, config), config)


def test_a_million_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    size = 1_000_000
    speaker = rng.integers(0, 5_000, size)
    columns = {
        "utterance": pa.array(np.char.add("a/", np.arange(size).astype(str))),
        "corpus": pa.array(["a"]).take(pa.array(np.zeros(size, np.int64))),
        "language": pa.array(["en", "fi"]).take(pa.array(speaker % 2)),
        "speaker": pa.array(np.char.add("a:", speaker.astype(str))),
        "emotion": pa.array(PAPER_EMOTIONS).take(pa.array(rng.integers(0, 4, size))),
        "audio_sha256": pa.array(np.char.mod("%064x", np.arange(size))),
    }
    manifest, config = pa.table(columns), experiment(("en", "fi"), a={})
    split_N = assign_splits(manifest, config)
    check_splits(manifest, split_N, config)
    assert 0.2 < (split_N == "test").mean() < 0.3


FESC = ("TIRE", "TIPE", "JARA", "MIKO", "ANRO", "RIGR", "TUVA", "PEKO", "JAKA")


def papers(importers: tuple[str, ...] = ("iemocap", "fesc", "cafe")) -> tuple[pa.Table, Experiment]:
    """Return small versions of the paper's three corpora, each with its importer and scheme `paper`."""
    iemocap = [
        row("iemocap", "en", f"{session}{letter}", emotion, session=str(session))
        for session in range(1, 6)
        for letter in "FM"
        for emotion in PAPER_EMOTIONS
    ]
    fesc = [row("fesc", "fi", speaker, emotion) for speaker in FESC for emotion in PAPER_EMOTIONS]
    cafe = [row("cafe", "fr", f"{actor:02}", emotion) for actor in range(1, 13) for emotion in PAPER_EMOTIONS]
    config = experiment(("en", "fi", "fr"), **{name: {"scheme": "paper"} for name in ("iemocap", "fesc", "cafe")})
    configured = [
        corpus.model_copy(update={"importer": importer})
        for corpus, importer in zip(config.corpora, importers, strict=True)
    ]
    return table(iemocap, fesc, cafe), config.model_copy(update={"corpora": tuple(configured)})


def test_paper_folds_hold_out_a_session_a_speaker_and_a_third_of_the_actors():
    manifest, config = papers()
    assert count_folds(manifest, config) == 9
    speakers = np.array(manifest["speaker"].to_pylist())
    tested: dict[str, list[frozenset[str]]] = {"iemocap": [], "fesc": [], "cafe": []}
    for fold in range(9):
        split_N = assign_splits(manifest, config, fold)
        check_splits(manifest, split_N, config)
        for name, folds in tested.items():
            folds.append(frozenset(s for s in speakers[split_N == "test"].tolist() if s.startswith(f"{name}:")))
    pairs = {frozenset({f"iemocap:{session}F", f"iemocap:{session}M"}) for session in range(1, 6)}
    assert set(tested["iemocap"][:5]) == pairs
    assert tested["iemocap"][5:] == tested["iemocap"][:4]
    assert set(tested["fesc"]) == {frozenset({f"fesc:{speaker}"}) for speaker in FESC}
    thirds = [("01", "07", "08", "10"), ("02", "04", "09", "12"), ("03", "05", "06", "11")]
    assert tested["cafe"] == [frozenset(f"cafe:{actor}" for actor in third) for third in thirds] * 3


def test_scheme_paper_is_rejected_for_other_corpora():
    manifest, config = papers(("csv", "fesc", "cafe"))
    with pytest.raises(
        SplitError, match=r"corpus iemocap: scheme `paper` is for the paper's corpora .*but the importer is"
    ):
        assign_splits(manifest, config)
