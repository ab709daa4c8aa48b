"""Results of language-aware students by language condition.

A condition is what the student gets as the language: the true one (given), none, so that it identifies it (identified),
the unknown code (unknown), or a wrong one (wrong).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from lakd_ray import metrics, storage
from lakd_ray.data.class_columns import PROBABILITY, read_class_columns
from lakd_ray.labels import POOLED
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.layout import language_conditions_folder

CONDITIONS = ("given", "identified", "unknown", "wrong")


def score_cells(cells: Sequence[RunGraph]) -> list[dict[str, Any]]:
    """Return the rows of `score_language_conditions` for one cell, or their means over several cells.

    Over several cells a model is a paradigm, set-up and variant, each cell weighs the same, and `n` counts predictions.
    """
    if len(cells) == 1:
        return score_language_conditions(cells[0])
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        names = {run.id: "-".join(filter(None, [run.paradigm, run.setup, run.variant])) for run in cell.students}
        for row in score_language_conditions(cell):
            groups.setdefault((names[row["model"]], row["language"], row["condition"]), []).append(row)
    return [_average_rows(model, rows) for (model, _, _), rows in groups.items()]


def score_language_conditions(graph: RunGraph) -> list[dict[str, Any]]:
    """Score every language-aware student in each language and condition.

    Returns:
        Rows `{model, language, condition, n, UR, language_accuracy, n_new_corpora, language_accuracy_new_corpora,
        corpora}`. `language_accuracy` is the share of utterances whose language the student identifies correctly; it
        does not depend on the condition. `language_accuracy_new_corpora` is that share among the `n_new_corpora`
        utterances of corpora that the student was not trained on, null without any: only these show that the
        student identifies the language and not the corpus. `corpora` is the number of test corpora.
    """
    rows = []
    for run in graph.students:
        location = storage.join(language_conditions_folder(graph.config), f"{run.id}.parquet")
        if run.recipe.model.language_aware is not None and storage.exists(location):
            table, emotions = storage.read_table(location), graph.config.emotions
            probabilities_NC = read_class_columns(table, PROBABILITY, emotions, context=location)
            rows += _score_model(run.id, table, probabilities_NC.astype(np.float64), emotions)
    return rows


def _average_rows(model: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    new_corpora = [
        row["language_accuracy_new_corpora"] for row in rows if row["language_accuracy_new_corpora"] is not None
    ]
    return rows[0] | {
        "model": model,
        "n": sum(row["n"] for row in rows),
        "UR": mean(row["UR"] for row in rows),
        "language_accuracy": mean(row["language_accuracy"] for row in rows),
        "n_new_corpora": sum(row["n_new_corpora"] for row in rows),
        "language_accuracy_new_corpora": mean(new_corpora) if new_corpora else None,
    }


def _score_model(
    model: str, table: Any, probabilities_NC: npt.NDArray[np.float64], emotions: Sequence[str]
) -> list[dict[str, Any]]:
    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    labels_N = np.array([emotions.index(name) for name in columns["emotion"]])
    correct_N, new_corpus_N = columns["predicted_language"] == columns["language"], ~columns["corpus_in_train"]
    rows = []
    for condition in (name for name in CONDITIONS if name in columns["condition"]):
        for language in (*np.unique(columns["language"]).tolist(), POOLED):
            row_N = (columns["condition"] == condition) & ((columns["language"] == language) | (language == POOLED))
            scores = metrics.compute_scores(probabilities_NC[row_N], labels_N[row_N], emotions)
            new_N = row_N & new_corpus_N
            rows.append(
                {
                    "model": model,
                    "language": language,
                    "condition": condition,
                    "n": scores.n,
                    "UR": scores.UR,
                    "language_accuracy": float(correct_N[row_N].mean()),
                    "n_new_corpora": int(new_N.sum()),
                    "language_accuracy_new_corpora": float(correct_N[new_N].mean()) if new_N.any() else None,
                    "corpora": len(np.unique(columns["corpus"][row_N])),
                }
            )
    return rows


@dataclass(frozen=True)
class LanguageRow:
    """A student in one language: one line of the page's table."""

    model: str
    language: str
    UR: list[float | None]
    """By condition, in the order of `CONDITIONS`."""
    language_accuracy: float
    language_accuracy_new_corpora: float | None


def build_language_table(rows: Sequence[dict[str, Any]]) -> list[LanguageRow]:
    """Put the conditions of each student and language side by side."""
    conditions: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        conditions.setdefault((row["model"], row["language"]), {})[row["condition"]] = row
    return [
        LanguageRow(
            model,
            language,
            [by_condition[name]["UR"] if name in by_condition else None for name in CONDITIONS],
            by_condition["given"]["language_accuracy"],
            by_condition["given"]["language_accuracy_new_corpora"],
        )
        for (model, language), by_condition in conditions.items()
    ]


def summary_sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Summarize the rows in one sentence per student, and a caveat on what they do not show."""
    sentences = []
    for model in dict.fromkeys(row["model"] for row in rows):
        pooled = {row["condition"]: row for row in rows if row["model"] == model and row["language"] == POOLED}
        scores = ", ".join(f"{100 * row['UR']:.1f} {_CONDITION_PHRASES[name]}" for name, row in pooled.items())
        sentences.append(
            f"{model}, UR in % over all its languages by language condition: {scores}. It identifies the language "
            f"correctly in {100 * pooled['given']['language_accuracy']:.1f} % of the utterances."
        )
    if sentences:
        sentences.append(_corpus_confound_caveat([row for row in rows if row["condition"] == "given"]))
    return sentences


def _corpus_confound_caveat(given: Sequence[dict[str, Any]]) -> str:
    """State whether the accuracy of language identification can be due to the corpora."""
    new_corpora = {
        row["model"]: f"{100 * row['language_accuracy_new_corpora']:.1f} % of {row['n_new_corpora']} ({row['model']})"
        for row in given
        if row["language"] == POOLED and row["language_accuracy_new_corpora"] is not None
    }
    caveat = "Language identification may rest on properties of the corpus, such as its microphones"
    if new_corpora:
        shares = ", ".join(new_corpora.values())
        return f"{caveat}. In corpora that the student was not trained on, the language is identified in {shares}."
    if all(row["corpora"] == 1 for row in given if row["language"] != POOLED):
        return (
            f"{caveat}: with one corpus per language the two cannot be distinguished, and identification across "
            "corpora is not measured."
        )
    return (
        f"{caveat}. Identification across corpora is not measured, because the student was trained on every test "
        "corpus. To measure it, add a corpus with all utterances in test (split scheme `given`)."
    )


_CONDITION_PHRASES = {
    "given": "with the language given",
    "identified": "with the language identified by the student",
    "unknown": "with the language unknown",
    "wrong": "with a wrong language",
}
