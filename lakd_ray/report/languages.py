"""How much a language-aware student's answers hang on being told the language, and how well it hears it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lakd_ray import metrics, storage
from lakd_ray.config import Experiment
from lakd_ray.labels import POOLED
from lakd_ray.runs import languages_folder, student_runs

CONDITIONS = ("given", "identified", "unknown", "wrong")


def rows(config: Experiment) -> list[dict[str, Any]]:
    """For every language-aware student, language and condition: {model, language, condition, n, UR, heard}.

    `heard` is the share of utterances whose language was heard rightly; it does not depend on the condition.
    """
    found = []
    for run in student_runs(config):
        location = storage.join(languages_folder(config), f"{run.id}.parquet")
        if run.recipe.model.language_aware is not None and storage.exists(location):
            found += _rows(run.id, storage.read_table(location), config.emotions)
    return found


def _rows(model: str, table: Any, emotions: Sequence[str]) -> list[dict[str, Any]]:
    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    labels_N = np.array([emotions.index(name) for name in columns["emotion"]])
    right_N = columns["heard"] == columns["language"]
    found = []
    for condition in CONDITIONS:
        for language in (*np.unique(columns["language"]).tolist(), POOLED):
            here_N = (columns["condition"] == condition) & ((columns["language"] == language) | (language == POOLED))
            scores = metrics.score(columns["probabilities"][here_N].astype(np.float64), labels_N[here_N], emotions)
            share = float(right_N[here_N].mean())
            place = {"model": model, "language": language, "condition": condition}
            found.append({**place, "n": scores.n, "UR": scores.UR, "heard": share})
    return found


def sentences(config: Experiment, found: Sequence[dict[str, Any]]) -> list[str]:
    """The rows in words, and what they do not show."""
    told = []
    for model in dict.fromkeys(row["model"] for row in found):
        pooled = {row["condition"]: row for row in found if row["model"] == model and row["language"] == POOLED}
        shown = ", ".join(f"{100 * pooled[name]['UR']:.1f} {_WORDS[name]}" for name in CONDITIONS)
        told.append(
            f"{model}, UR over all languages by what it is told of the language: {shown}. It hears the right language "
            f"in {100 * pooled['identified']['heard']:.1f} % of the utterances."
        )
    if told:
        shared = len(config.corpora) < 2 * len(config.languages)
        told.append(
            "Hearing the language can be hearing the corpus or its microphones"
            + (": with one corpus for a language the two cannot be told apart here." if shared else ".")
        )
    return told


_WORDS = {
    "given": "with the language given",
    "identified": "as it hears it",
    "unknown": "with the language hidden",
    "wrong": "with another one in its place",
}
