"""Test the marks of results whose model may have seen test speakers, and the caveats that explain them."""

from typing import Any

import numpy as np

from lakd_ray.config import Experiment
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.report import caveats
from lakd_ray.report.aggregate import aggregate_seeds, build_rows
from lakd_ray.report.predictions import Predictions
from lakd_ray.report.result_table import build_table


def predictions(fold: int, **changes: Any) -> Predictions:
    N = 8
    speakers_N = np.array([f"c:{fold}{number % 2}" for number in range(N)])
    fields: dict[str, Any] = {
        "model": "mtkd-multilingual", "paradigm": "mtkd", "setup": "multilingual", "variant": None,
        "undisclosed_models": "", "settings_selected_on": "", "fold": fold, "seed": 1, "trained_languages": ("en",),
        "digest": "x", "utterance_N": np.array([f"{fold}-{number}" for number in range(N)]),
        "fold_N": np.full(N, fold), "language_N": np.array(["en"] * N), "speaker_N": speakers_N,
        "cluster_N": speakers_N, "sentence_in_train_N": np.array([None] * N, dtype=object),
        "labels_N": np.arange(N) % 4, "probabilities_NC": np.eye(4)[np.arange(N) % 4],
    }  # fmt: skip
    return Predictions(**fields | changes)


MODELS = [
    predictions(0, undisclosed_models="openai/whisper-base"),
    predictions(1, undisclosed_models="theirs", settings_selected_on="c:11, c:10"),
]


def names(models: list[Predictions]) -> set[str]:
    (aggregate,) = aggregate_seeds(models)
    return {line.name for line in build_table(build_rows(aggregate, ["en"], list(PAPER_EMOTIONS)))}


def test_a_pooled_row_has_the_marks_of_all_folds() -> None:
    assert names(MODELS) == {"MTKD multilingual*†"}
    assert names([MODELS[0]]) == {"MTKD multilingual*"}
    assert names([predictions(0), predictions(1)]) == {"MTKD multilingual"}


def test_caveats_explain_the_marks() -> None:
    recipe = {"model": {"pretrained": "x"}}
    search = {"experiment": "study", "fold": 0, "speakers": ["c:10", "c:11"]}
    config = Experiment.model_validate(
        {
            "name": "t",
            "languages": ["en"],
            "corpora": [{"name": "c", "root": "x"}],
            "teacher": recipe,
            "student": recipe,
            "selected_on": [search],
        }
    )
    (undisclosed,) = caveats._undisclosed_model_caveat(MODELS)
    assert "* started from or distilled from openai/whisper-base (speech from the web" in undisclosed
    assert ", theirs, whose training data is not known" in undisclosed
    (selected,) = caveats._selected_settings_caveat(config, MODELS)
    assert "selected by study (fold 0) on dev speakers who are test speakers in fold 1 (c:10, c:11)" in selected
    assert caveats._selected_settings_caveat(config, MODELS[:1]) == []
