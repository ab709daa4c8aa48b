"""Test that a person with several names is one speaker."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pydantic import ValidationError

from lakd_ray.config import Experiment
from lakd_ray.data import prepare
from lakd_ray.data.deduplicate import drop_duplicates
from lakd_ray.data.manifest import Manifest
from lakd_ray.data.provenance import DataExposure
from lakd_ray.data.speaker_aliases import first_names, merge_speakers
from lakd_ray.data.split_checks import check_splits
from lakd_ray.data.splits import assign_splits, count_folds
from lakd_ray.errors import ConfigError, SplitError
from lakd_ray.labels import PAPER_EMOTIONS

ALIASES = {"a:01": ["b:x1"], "a:02": ["a:02bis", "b:x2"]}


def experiment(aliases: dict[str, list[str]] | None = None, **changes: Any) -> Experiment:
    recipe = {"model": {"pretrained": "x"}}
    corpora = [{"name": name, "root": "x", "split": {"dev_speakers": 1}} for name in "ab"]
    content = {"name": "t", "languages": ["en"], "corpora": corpora, "teacher": recipe, "student": recipe}
    return Experiment.model_validate(content | {"speaker_aliases": ALIASES if aliases is None else aliases} | changes)


def prepared() -> pa.Table:
    speakers = [f"a:{number:02}" for number in range(8)] + ["a:02bis"] + [f"b:x{number}" for number in range(8)]
    rows = [
        {
            "utterance": f"{speaker}-{emotion}",
            "corpus": speaker[0],
            "language": "en",
            "speaker": speaker,
            "emotion": emotion,
            "audio_sha256": f"{speaker}-{emotion}",
        }
        for speaker in speakers
        for emotion in PAPER_EMOTIONS
    ]
    return pa.Table.from_pylist(rows)


def test_a_person_is_in_one_split_and_each_utterance_is_tested_once() -> None:
    config = experiment()
    table = merge_speakers(prepared(), config)
    speakers = np.array(table["speaker"].to_pylist())
    assert Counter(speakers.tolist())["a:01"] == 8 and Counter(speakers.tolist())["a:02"] == 12
    tested: Counter[str] = Counter()
    num_excluded = 0
    for fold in range(count_folds(table, config)):
        split_N = assign_splits(table, config, fold)
        check_splits(table, split_N, config)
        assert all(len(set(split_N[speakers == name]) - {""}) == 1 for name in ALIASES)
        num_excluded += int((split_N == "").sum())
        tested.update(np.array(table["utterance"].to_pylist())[split_N == "test"].tolist())
    assert set(tested.values()) == {1} and len(tested) == len(table)
    assert num_excluded > 0


def test_groups_of_speakers_may_use_other_names() -> None:
    groups = [[f"x{number}" for number in range(4)], [f"x{number}" for number in range(4, 8)]]
    corpora = [{"name": "a", "root": "x"}, {"name": "b", "root": "x"}]
    corpora[1]["split"] = {"scheme": "speaker-groups", "groups": groups, "dev_speakers": 1}  # type: ignore[assignment]  # values of different types
    config = experiment(corpora=corpora)
    table = merge_speakers(prepared(), config)
    split_N = assign_splits(table, config, 0)
    tested = {
        utterance for utterance, split in zip(table["utterance"].to_pylist(), split_N, strict=True) if split == "test"
    }
    assert {f"b:x{number}-anger" for number in range(4)} <= tested


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ({"a:01": ["c:x1"]}, "expected corpus:speaker, with the corpora a, b"),
        ({"01": ["a:02"]}, "`speaker_aliases` has 01: expected corpus:speaker"),
        ({"a:01": ["b:x1"], "a:02": ["b:x1"]}, "has b:x1 more than once"),
        ({"a:01": ["b:x1"], "b:x1": ["b:x2"]}, "has b:x1 more than once"),
    ],
)
def test_aliases_that_contradict_each_other_are_rejected(aliases: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment(aliases)


def test_unknown_names_are_errors_with_similar_names() -> None:
    with pytest.raises(ConfigError, match=r"do not have:\n  b:x11; similar: b:x1"):
        merge_speakers(prepared(), experiment({"a:01": ["b:x11"]}))
    assert merge_speakers(prepared(), experiment({})) is not None


def test_all_names_are_in_the_record_of_the_training_data() -> None:
    config = experiment()
    table = merge_speakers(prepared(), config)
    zeros_N = np.zeros(len(table), dtype=np.int64)
    data = Manifest(table, zeros_N, zeros_N.astype(str), zeros_N, zeros_N, (), zeros_N, zeros_N, zeros_N)
    rows = np.flatnonzero(np.array(table["speaker"].to_pylist()) == "a:02")
    seen = replace(data, other_names=config.speaker_aliases, datasets={"b": "ravdess"}).data_exposure(rows)
    assert seen.speakers == {"a:02", "a:02bis", "b:x2"} and seen.datasets == {"ravdess:x2"}
    assert seen.overlap(DataExposure(frozenset({"b:x2"}))) == ["b:x2"]


def test_copies_by_one_person_agree() -> None:
    rows = [
        {"utterance": name, "speaker": name, "emotion": "anger", "audio_sha256": "same"} for name in ("a:01", "b:x1")
    ]
    assert len(drop_duplicates(rows)[0]) == 0
    assert len(drop_duplicates(rows, first_names(experiment()))[0]) == 1


def test_two_corpora_of_one_dataset_do_not_share_a_speaker() -> None:
    table = prepared()
    renamed = table.set_column(
        3, "speaker", pa.array([name.replace("x", "0") for name in table["speaker"].to_pylist()])
    )
    corpora = [{"name": name, "root": "x", "dataset": "ravdess", "split": {"dev_speakers": 1}} for name in "ab"]
    config = experiment({}, corpora=corpora)
    with pytest.raises(SplitError, match=r"(?s)a:0\d, b:0\d are one speaker of a dataset and are in .*speaker_aliases"):
        check_splits(renamed, assign_splits(renamed, config), config)
    merged = experiment({f"a:0{number}": [f"b:0{number}"] for number in range(8)}, corpora=corpora)
    table = merge_speakers(renamed, merged)
    check_splits(table, assign_splits(table, merged), merged)
    separate = experiment({}, corpora=[corpora[0], corpora[1] | {"dataset": "other"}])
    check_splits(renamed, assign_splits(renamed, separate), separate)


@pytest.mark.parametrize("treatment", ["error", "warn", "off"])
def test_recordings_with_one_acoustic_fingerprint_in_two_splits(treatment: str, caplog: Any) -> None:
    config = experiment({}, audio={"acoustic_duplicates": treatment})
    table = prepared()
    split_N = assign_splits(table, config)
    fingerprints: list[str | None] = [None] * len(table)
    pair = [int(np.flatnonzero(split_N == split)[0]) for split in ("train", "test")]
    for row in pair:
        fingerprints[row] = "sound"
    table = table.append_column("acoustic_fingerprint", pa.array(fingerprints))
    if treatment == "error":
        with pytest.raises(
            SplitError, match=r"1 recording is in more .*\n.* have the same acoustic fingerprint and are in"
        ):
            check_splits(table, split_N, config)
        return
    check_splits(table, split_N, config)
    assert ("same acoustic fingerprint" in caplog.text) == (treatment == "warn")


def test_prepare_rejects_unknown_names_and_runs_again_after_a_change(tmp_path: Path, monkeypatch: Any) -> None:
    lines = ["path,emotion,language,speaker"]
    for name in ("01", "02"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16_000)
        lines.append(f"{name}.wav,anger,en,{name}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    corpora = [{"name": "a", "root": str(tmp_path / "manifest.csv")}]

    def config(aliases: dict[str, list[str]]) -> Experiment:
        return experiment(aliases, corpora=corpora, storage=str(tmp_path / "out"))

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(prepare, "_prepare_corpora", lambda *args: calls.append({}) or ([], []))
    with pytest.raises(ConfigError, match=r"do not have:\n  a:3; similar: a:0"):
        prepare.prepare_corpora(config({"a:01": ["a:3"]}))
    assert not calls
    for aliases, expected in (({}, 1), ({}, 1), ({"a:01": ["a:02"]}, 2), ({"a:01": ["a:02"]}, 2)):
        prepare.prepare_corpora(config(aliases))
        assert len(calls) == expected
