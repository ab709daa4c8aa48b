"""Classes that a language lacks in dev or test of some folds."""

import pyarrow as pa

from lakd_ray.config import Experiment
from lakd_ray.data.class_coverage import describe_all_splits, describe_splits
from lakd_ray.data.splits import assign_splits


def experiment(dev_speakers: int = 1) -> Experiment:
    recipe = {"model": {"pretrained": "somewhere"}}
    split = {"scheme": "leave-one-speaker-out", "dev_speakers": dev_speakers}
    return Experiment.model_validate(
        {
            "name": "e", "languages": ["en", "fi"], "emotions": ["anger", "sadness"], "teacher": recipe,
            "student": recipe, "corpora": [{"name": "c", "root": "x", "split": split}],
        }
    )  # fmt: skip


def manifest(without_sadness: str) -> pa.Table:
    """Return the manifest of four speakers per language, one of which has no sadness."""
    rows = [
        {"corpus": "c", "language": language, "speaker": f"c:{language}{number}", "emotion": emotion}
        for language in ("en", "fi")
        for number in range(4)
        for emotion in ("anger", "sadness")
        if not (emotion == "sadness" and f"{language}{number}" == without_sadness)
    ]
    return pa.Table.from_pylist(rows)


def folds_with_dev_speaker(speaker: str) -> list[str]:
    table, config = manifest("none"), experiment()
    rows = [table["speaker"].to_pylist().index(speaker)]
    return [str(fold) for fold in range(4) if assign_splits(table, config, fold)[rows] == ["dev"]]


def test_dev_and_test_that_lack_a_class_are_named_with_their_folds():
    folds = folds_with_dev_speaker("c:fi2")
    assert describe_all_splits(manifest("fi2"), experiment()) == [
        f"dev has 1 of 2 classes in fi (no sadness) in fold{'s' * (len(folds) > 1)} {', '.join(folds)}: "
        "UR on dev in fi is over the classes present",
        "test has 1 of 2 classes in fi (no sadness) in fold 2: UR on test in fi is over the classes present",
    ]


def test_one_fold_is_not_numbered_and_complete_splits_are_not_mentioned():
    assert describe_splits(manifest("fi2"), experiment(), [2]) == [
        "test has 1 of 2 classes in fi (no sadness): UR on test in fi is over the classes present"
    ]
    assert describe_all_splits(manifest("none"), experiment()) == []


def test_a_speaker_with_two_names_is_one_speaker():
    """Without the alias, fold 3 tests fi3 alone, which has no sadness; with it, fi0 too, which has."""
    table, config = manifest("fi3"), experiment()
    assert any(text.startswith("test") for text in describe_all_splits(table, config))
    aliased = Experiment.model_validate(config.model_dump() | {"speaker_aliases": {"c:fi3": ["c:fi0"]}})
    assert not any(text.startswith("test") for text in describe_all_splits(table, aliased))


def test_splits_that_are_impossible_are_reported_by_the_stages_that_need_them():
    assert describe_all_splits(manifest("fi2"), experiment(dev_speakers=9)) == []
