"""How much a language-aware student's answers hang on being told the language, and how well it hears it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from lakd_ray import metrics, storage
from lakd_ray.labels import POOLED
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.layout import language_conditions_folder

CONDITIONS = ("given", "identified", "unknown", "wrong")


def score_language_conditions(graph: RunGraph) -> list[dict[str, Any]]:
    """For every language-aware student, language and condition: {model, language, condition, n, UR, heard, ...}.

    `heard` is the share of utterances whose language was heard rightly; it does not depend on the condition.
    `language_accuracy_new_corpora` is that share among the `n_new_corpora` utterances of corpora that the student was not trained on,
    null if there are none: only there is it sure that it was the language, and not the corpus, that was heard.
    `corpora` is the number of test corpora.
    """
    found = []
    for run in graph.students:
        location = storage.join(language_conditions_folder(graph.config), f"{run.id}.parquet")
        if run.recipe.model.language_aware is not None and storage.exists(location):
            found += _score_model(run.id, storage.read_table(location), graph.config.emotions)
    return found


def average_over_cells(cells: Sequence[RunGraph]) -> list[dict[str, Any]]:
    """The same of a whole grid: a paradigm, set-up and variant is one model, shares are means over its cells."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        names = {run.id: "-".join(filter(None, [run.paradigm, run.setup, run.variant])) for run in cell.students}
        for row in score_language_conditions(cell):
            groups.setdefault((names[row["model"]], row["language"], row["condition"]), []).append(row)
    return [_average_rows(model, members) for (model, _, _), members in groups.items()]


def _average_rows(model: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    elsewhere = [
        row["language_accuracy_new_corpora"] for row in rows if row["language_accuracy_new_corpora"] is not None
    ]
    return rows[0] | {
        "model": model,
        "n": sum(row["n"] for row in rows),
        "UR": mean(row["UR"] for row in rows),
        "language_accuracy": mean(row["language_accuracy"] for row in rows),
        "n_new_corpora": sum(row["n_new_corpora"] for row in rows),
        "language_accuracy_new_corpora": mean(elsewhere) if elsewhere else None,
    }


def _score_model(model: str, table: Any, emotions: Sequence[str]) -> list[dict[str, Any]]:
    columns = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    labels_N = np.array([emotions.index(name) for name in columns["emotion"]])
    right_N, elsewhere_N = columns["predicted_language"] == columns["language"], ~columns["corpus_in_train"]
    found = []
    for condition in (name for name in CONDITIONS if name in columns["condition"]):
        for language in (*np.unique(columns["language"]).tolist(), POOLED):
            here_N = (columns["condition"] == condition) & ((columns["language"] == language) | (language == POOLED))
            scores = metrics.compute_scores(
                columns["probabilities"][here_N].astype(np.float64), labels_N[here_N], emotions
            )
            there_N = here_N & elsewhere_N
            found.append(
                {
                    "model": model,
                    "language": language,
                    "condition": condition,
                    "n": scores.n,
                    "UR": scores.UR,
                    "language_accuracy": float(right_N[here_N].mean()),
                    "n_new_corpora": int(there_N.sum()),
                    "language_accuracy_new_corpora": float(right_N[there_N].mean()) if there_N.any() else None,
                    "corpora": len(np.unique(columns["corpus"][here_N])),
                }
            )
    return found


@dataclass(frozen=True)
class LanguageRow:
    """A student in one language: one line of the page's table."""

    model: str
    language: str
    UR: list[float | None]
    """By `CONDITIONS`."""
    language_accuracy: float
    language_accuracy_new_corpora: float | None


def build_language_table(rows: Sequence[dict[str, Any]]) -> list[LanguageRow]:
    """The rows side by side."""
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["language"]), {})[row["condition"]] = row
    return [
        LanguageRow(
            *place,
            [ways[name]["UR"] if name in ways else None for name in CONDITIONS],
            ways["given"]["language_accuracy"],
            ways["given"]["language_accuracy_new_corpora"],
        )
        for place, ways in cells.items()
    ]


def summary_sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows in words, and what they do not show."""
    told = []
    for model in dict.fromkeys(row["model"] for row in rows):
        pooled = {row["condition"]: row for row in rows if row["model"] == model and row["language"] == POOLED}
        shown = ", ".join(f"{100 * row['UR']:.1f} {_CONDITION_PHRASES[name]}" for name, row in pooled.items())
        told.append(
            f"{model}, UR over all its languages by what it is told of the language: {shown}. It hears the right "
            f"language in {100 * pooled['given']['language_accuracy']:.1f} % of the utterances."
        )
    if told:
        told.append(_corpus_confound_caveat([row for row in rows if row["condition"] == "given"]))
    return told


def _corpus_confound_caveat(given: Sequence[dict[str, Any]]) -> str:
    """Whether it was the language that was heard."""
    elsewhere = {
        row["model"]: f"{100 * row['language_accuracy_new_corpora']:.1f} % of {row['n_new_corpora']} ({row['model']})"
        for row in given
        if row["language"] == POOLED and row["language_accuracy_new_corpora"] is not None
    }
    said = "Hearing the language can be hearing the corpus or its microphones"
    if elsewhere:
        shown = ", ".join(elsewhere.values())
        return f"{said}. In corpora that the student was not trained on the right language is identified in {shown}."
    if all(row["corpora"] == 1 for row in given if row["language"] != POOLED):
        return (
            f"{said}: with one corpus for a language the two cannot be told apart here, and hearing is not measured "
            "across corpora."
        )
    return (
        f"{said}. It is not measured across corpora: the student was trained on every corpus of the test. One whose "
        "utterances are all given to test (split scheme `given`) would show it."
    )


_CONDITION_PHRASES = {
    "given": "with the language given",
    "identified": "as it hears it",
    "unknown": "with the language hidden",
    "wrong": "with another one in its place",
}
