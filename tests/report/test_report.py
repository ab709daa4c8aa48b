"""Reports on synthetic predictions, drawn at random with a known strength of each model."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lakd_ray import report, storage
from lakd_ray.config import Experiment
from lakd_ray.data.schema import LANGUAGE_CONDITIONS_SCHEMA, PREDICTIONS_SCHEMA, with_probabilities
from lakd_ray.errors import DataError, StageError
from lakd_ray.report import caveats, curves
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.layout import language_conditions_folder, predictions_folder
from lakd_ray.runs.state import RunState, select_served_student
from lakd_ray.statistics import recall_interval

STRENGTH = {"teacher": 1.6, "ft": 1.2, "kd": 1.35, "mtkd": 1.7}
RECIPE = {"model": {"config": {"model_type": "wav2vec2"}, "freeze_feature_encoder": False}}


def experiment(storage_folder: str, **changes: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "fake",
        "storage": storage_folder,
        "languages": ["en", "fi", "fr"],
        "corpora": [{"name": "demo", "importer": "espeak", "root": "{storage}/demo"}],
        "teacher": RECIPE,
        "student": RECIPE,
        "distill": {"setups": ["multilingual"]},
    }
    return Experiment.model_validate(values | changes)


def small(storage_folder: str, **changes: Any) -> Experiment:
    """Return an experiment with one language and one student, which has few figures."""
    return experiment(storage_folder, **{"languages": ["en"], "distill": {"paradigms": ["mtkd"]}} | changes)


def table(run: Run, paradigm: str, config: Experiment, *, strength: float, speakers: int, utterances: int) -> pa.Table:
    """Return predictions for `utterances` per speaker, language and emotion; `strength` raises the true logit."""
    rng = np.random.default_rng(hash_of(run.id))
    C = len(config.emotions)
    rows = []
    for language in config.languages:
        for speaker in range(speakers):
            ease = np.random.default_rng(speaker).normal(0, 0.4)  # the same speakers are hard for every model
            for number in range(utterances * C):
                label = number % C
                logits_C = rng.normal(size=C) + (strength + ease) * (np.arange(C) == label)
                probabilities_C = np.exp(logits_C) / np.exp(logits_C).sum()
                rows.append(
                    {
                        "utterance": f"demo/{language}-{speaker}-{number}",
                        "corpus": "demo",
                        "language": language,
                        "speaker": f"demo:{language}-{speaker}",
                        "cluster": f"demo:{language}-{speaker}",
                        "sentence": "s1",
                        "sentence_in_train": number == 0,
                        "fold": config.fold,
                        "seed": config.seed,
                        "paradigm": paradigm,
                        "variant": run.variant,
                        "undisclosed_models": "",
                        "settings_selected_on": "",
                        "setup": run.setup,
                        "model": run.id,
                        "emotion": config.emotions[label],
                        **{f"p_{name}": p for name, p in zip(config.emotions, probabilities_C.tolist(), strict=True)},
                    }
                )
    return pa.Table.from_pylist(rows, schema=with_probabilities(PREDICTIONS_SCHEMA, config.emotions))


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**index for index, letter in enumerate(text)) % 2**32


def location(config: Experiment, run_id: str) -> str:
    return storage.join(predictions_folder(config), f"{run_id}.parquet")


def evaluate(config: Experiment, strength: dict[str, float] = STRENGTH, speakers: int = 3, utterances: int = 2) -> None:
    """Write the predictions of every run; those of monolingual students are in their own language only."""
    for run in build_run_graph(config).evaluated:
        paradigm = "teacher" if run.stage == "teachers" else run.paradigm
        rows = table(run, paradigm, config, strength=strength[paradigm], speakers=speakers, utterances=utterances)
        if run.stage == "distill" and run.setup == "monolingual":
            rows = rows.filter(pc.equal(rows["language"], run.languages[0]))
        storage.write_table(location(config, run.id), rows)


def train(config: Experiment, epochs: int = 8, gains: dict[str, float] | None = None) -> None:
    """Write the state and metrics of every run; `gains` raises the UR on dev of the runs of a paradigm."""
    rng = np.random.default_rng(0)
    for run in build_run_graph(config).evaluated:
        gain = (gains or {}).get(run.paradigm, 0.0)
        entries = []
        for epoch in range(1, epochs + 1):
            recall = {language: 1 - 0.75 * np.exp(-epoch / 6) + rng.normal(0, 0.03) for language in run.languages}
            dev_UR = float(np.mean(list(recall.values()))) + gain
            loss = 1.4 * np.exp(-epoch / 5)
            entries.append({"epoch": epoch, "loss": loss, "dev_recall": recall, "dev_UR": dev_UR, "dev_ce": loss})
        RunState(metrics=tuple(entries)).write(run.folder(config))


def write_report(config: Experiment, *cells: Experiment) -> tuple[dict[str, Any], str]:
    """Return the content of report.json and report.html, by default of the experiment's single cell."""
    page = report.write_report(config, [build_run_graph(cell) for cell in cells or [config]])
    assert page == storage.join(config.folder, "report", "report.html")
    return report.read_report(config), storage.read_bytes(page).decode()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, dict[str, Any], str]:
    config = experiment(str(tmp_path_factory.mktemp("plain")))
    evaluate(config)
    train(config)
    return config, *write_report(config)


def numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from numbers(branch)
    elif isinstance(tree, int | float):
        yield tree


def text_of(html: str) -> str:
    """Return the visible text of a page in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub("</?code>", "`", html)))


def test_json_has_a_row_for_each_run_and_language_and_one_for_all(plain: Any) -> None:
    _, content, _ = plain
    tables = {"results", "pooled", "comparisons", "model_selection", "language_conditions"}
    assert set(content) == {"experiment", "emotions", "corpora", "cells", "notes"} | tables
    assert content["cells"] == [{"fold": 0, "seed": 42, "variant": None}]
    assert content["experiment"] == "fake"
    assert content["corpora"] == [{"name": "demo", "importer": "espeak", "synthetic": True}]
    keys = [(row["paradigm"], row["setup"], row["model"], row["language"]) for row in content["results"]]
    models = [
        ("teacher", "monolingual", "teacher-en-f0-s42"),
        ("teacher", "monolingual", "teacher-fi-f0-s42"),
        ("teacher", "monolingual", "teacher-fr-f0-s42"),
        ("ft", "multilingual", "teacher-all-f0-s42"),  # trained exactly as the ft student would be
        ("kd", "multilingual", "kd-multilingual-f0-s42"),
        ("mtkd", "multilingual", "mtkd-multilingual-f0-s42"),
    ]
    assert keys == [(*model, language) for model in models for language in ("en", "fi", "fr", "mean", "all")]


def test_rows_have_exactly_the_documented_keys_and_plain_values(plain: Any) -> None:
    _, content, _ = plain
    for row in content["results"]:
        assert set(row) == {
            *("paradigm", "setup", "language", "fold", "seed", "UR", "WR", "macro_f1", "ece", "n"),
            *("UR_interval", "WR_interval", "recall", "confusion", "model", "variant"),
            *("undisclosed_models", "settings_selected_on"),
        }
        assert row["fold"] == 0 and row["seed"] == 42
        low, high = row["UR_interval"]
        assert 0 <= low <= row["UR"] <= high <= 1
        assert row["n"] == (72 if row["language"] in ("mean", "all") else 24)
        assert row["confusion"] is None if row["language"] == "mean" else np.sum(row["confusion"]) == row["n"]
    assert all(math.isfinite(number) for number in numbers(content))


def test_a_row_can_be_recomputed_from_the_file(plain: Any) -> None:
    config, content, _ = plain
    rows = storage.read_table(location(config, "kd-multilingual-f0-s42")).to_pylist()
    rows = [row for row in rows if row["language"] == "fi"]
    recall = {}
    for emotion in config.emotions:
        predicted = [
            max(config.emotions, key=lambda name: row[f"p_{name}"]) for row in rows if row["emotion"] == emotion
        ]
        recall[emotion] = predicted.count(emotion) / len(predicted)
    (result,) = [r for r in content["results"] if r["model"] == "kd-multilingual-f0-s42" and r["language"] == "fi"]
    assert result["recall"] == pytest.approx(recall)
    assert result["UR"] == pytest.approx(sum(recall.values()) / 4)


def test_predictions_are_read_by_class_name(tmp_path: Path) -> None:
    """Neither the order of the columns in a file nor that of the experiment's classes changes a result."""
    config = small(str(tmp_path))
    evaluate(config)
    expected, _ = write_report(config)
    for run in build_run_graph(config).evaluated:
        file = location(config, run.id)
        stored = storage.read_table(file)
        storage.write_table(file, stored.select(stored.column_names[::-1]))
    shuffled, _ = write_report(config)
    reordered, _ = write_report(config.model_copy(update={"emotions": config.emotions[::-1]}))
    assert shuffled == expected
    assert reordered["emotions"] == expected["emotions"][::-1]
    for row, other in zip(expected["results"], reordered["results"], strict=True):
        if row["confusion"] is not None:
            assert np.array_equal(np.array(row["confusion"]), np.array(other["confusion"])[::-1, ::-1])
        assert row["recall"] == pytest.approx(other["recall"])
        assert (row["UR"], row["WR"], row["ece"]) == pytest.approx((other["UR"], other["WR"], other["ece"]))


def test_intervals_of_one_cell_are_over_speakers(plain: Any) -> None:
    config, content, _ = plain
    rows = storage.read_table(location(config, "mtkd-multilingual-f0-s42")).to_pylist()
    rows = [row for row in rows if row["language"] == "fi"]
    probabilities_NC = np.array([[row[f"p_{name}"] for name in config.emotions] for row in rows])
    labels_N = np.array([config.emotions.index(row["emotion"]) for row in rows])
    bounds = recall_interval(probabilities_NC, labels_N, [row["speaker"] for row in rows])
    assert bounds is not None
    for table in ("results", "pooled"):
        (result,) = [r for r in content[table] if r["paradigm"] == "mtkd" and r["language"] == "fi"]
        assert result["UR_interval"] == pytest.approx(list(bounds))
        assert (result["model"], result["fold"], result["seed"]) == ("mtkd-multilingual-f0-s42", 0, 42)


def test_comparisons_have_a_table(plain: Any) -> None:
    _, content, html = plain
    assert [(row["first"], row["second"]) for row in content["comparisons"]] == [
        ("MTKD multilingual", "FT multilingual"),
        ("MTKD multilingual", "KD multilingual"),
    ]
    keys = {"difference", "interval", "seeds", "p_value", "p_adjusted", "verdict", "clusters", "unit"}
    for row in content["comparisons"]:
        assert set(row) == {"first", "second"} | keys
        assert (row["seeds"], row["clusters"], row["unit"], row["verdict"]) == (1, 9, "speaker", "no verdict: one seed")
        low, high = row["interval"]
        assert low < row["difference"] < high and row["p_value"] is row["p_adjusted"] is None
        points = f"{100 * row['difference']:+.1f}"
        assert f"{row['first']} {row['second']} {points} {100 * low:+.1f} to {100 * high:+.1f} 1 9 -" in text_of(html)


def test_page_has_a_table_of_language_conditions(tmp_path: Path, plain: Any) -> None:
    recipe = {"model": RECIPE["model"] | {"language_aware": {}}}
    config = small(str(tmp_path), student=recipe)
    evaluate(config)
    (run,) = build_run_graph(config).students
    rows = [
        {
            "utterance": f"u{number}", "corpus": "demo", "corpus_in_train": True, "language": "en", "model": run.id,
            "condition": condition, "predicted_language": "en", "emotion": config.emotions[number],
            **{
                f"p_{name}": float(index == (number if condition == "given" else 0))
                for index, name in enumerate(config.emotions)
            },
        }
        for condition in ("given", "identified", "unknown")
        for number in range(4)
    ]  # fmt: skip
    file = storage.join(language_conditions_folder(config), f"{run.id}.parquet")
    schema = with_probabilities(LANGUAGE_CONDITIONS_SCHEMA, config.emotions)
    storage.write_table(file, pa.Table.from_pylist(rows, schema=schema))
    content, page = write_report(config)
    assert [row["UR"] for row in content["language_conditions"] if row["language"] == "all"] == [1.0, 0.25, 0.25]
    assert f"{run.id} en 100.0 25.0 25.0 - 100.0 -" in text_of(page)
    assert "the two cannot be distinguished" in text_of(page)
    assert "Language conditions" in text_of(page)
    assert "Language conditions" not in text_of(plain[2])


def test_page_needs_no_network_access(plain: Any) -> None:
    _, _, html = plain
    assert not re.findall(r"https?://|@import|<script|<link", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert "url(" not in html and "default-src 'none'" in html


def test_page_has_all_figures_with_alternative_text(plain: Any) -> None:
    _, _, html = plain
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    assert sum(alt.startswith("Unweighted recall") for alt in alts) == 5
    assert sum(alt.startswith("Recall by emotion") for alt in alts) == 5
    assert sum(alt.startswith("Confusion matrix") for alt in alts) == 3 * 4  # of students, not of the mean
    assert sum(alt.startswith("Training of") for alt in alts) == 6
    assert html.count("<img") == len(alts) == 28


@pytest.mark.parametrize(
    ("importer", "synthetic", "warnings"), [("csv", True, 1), ("csv", None, 0), ("espeak", None, 1)]
)
def test_synthetic_corpora_have_a_warning(plain: Any, importer: str, synthetic: bool | None, warnings: int) -> None:
    config, *_ = plain
    corpus = config.corpora[0].model_copy(update={"importer": importer, "synthetic": synthetic})
    changed = config.model_copy(update={"corpora": (corpus,)})
    assert len(caveats.synthetic_corpus_warnings(changed)) == warnings


def test_page_has_all_caveats(plain: Any) -> None:
    _, content, html = plain
    text = text_of(html)
    assert "Corpus demo is synthetic: its speech comes from a synthesizer" in text
    assert "no evidence about human emotion" in text
    assert "Intervals are 95 % t intervals of a jackknife over test speakers (en 3, fi 3, fr 3)." in text
    assert "One seed (42): the intervals cover the variation over test speakers, not that over training runs" in text
    assert "One fold (0): different folds have different test speakers" in text
    assert "sentence is also in train, by other speakers: en 3 of 24, fi 3 of 24, fr 3 of 24." in text
    assert "FT multilingual is the teacher run teacher-all-f0-s42" in text
    assert all(note in text for note in content["notes"])
    assert "lam: 0.07692307692307693" in text  # the experiment file
    assert f"lakd-ray {record.package_versions()['lakd-ray']}" in text


def test_headline_table_is_in_percent(plain: Any) -> None:
    _, content, html = plain
    (row,) = [r for r in content["results"] if r["model"] == "mtkd-multilingual-f0-s42" and r["language"] == "mean"]
    low, high = row["UR_interval"]
    cells = f"{100 * row['UR']:.1f} {100 * low:.1f}–{100 * high:.1f} {100 * row['WR']:.1f}"  # noqa: RUF001  # a range
    assert f"MTKD multilingual mtkd-multilingual-f0-s42 {cells}" in text_of(html)


def test_summary_is_an_aligned_table_with_a_line_per_run(plain: Any) -> None:
    _, content, _ = plain
    lines = report.format_summary(content).splitlines()
    table, notes = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert len(table) == 2 + 6
    starts = [table[0].index(name) for name in ("model", "mean", "all", "en", "fi", "fr")]
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in table[1:] for start in starts)
    assert re.match(r"MTKD multilingual +mtkd-multilingual-f0-s42 ", table[-1])
    assert notes == [f"note: {note}" for note in content["notes"]]


def test_grid_has_pooled_rows_and_a_table_of_recalls(tmp_path: Path) -> None:
    config = small(str(tmp_path))
    cells = [config.model_copy(update={"seed": seed}) for seed in (1, 2)]
    for cell in cells:
        evaluate(cell)
    content, html = write_report(config, *cells)
    assert [cell["seed"] for cell in content["cells"]] == [1, 2]
    assert {row["seed"] for row in content["results"]} == {1, 2}
    assert [(row["model"], row["seed"], row["language"]) for row in content["pooled"]] == [
        ("teacher-monolingual", None, "en"),
        ("teacher-monolingual", None, "mean"),
        ("teacher-monolingual", None, "all"),
        ("mtkd-multilingual", None, "en"),
        ("mtkd-multilingual", None, "mean"),
        ("mtkd-multilingual", None, "all"),
    ]
    table, recalls, notes = report.format_summary(content).split("\n\n")
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == ["Teacher monolingual", "MTKD multilingual"]
    assert recalls.split()[:5] == ["recall", *config.emotions]
    assert "Each test utterance weighs one per seed (24)." in notes
    assert "Fold 0, seeds 1 and 2." in text_of(html)
    assert "Training of" not in html


def test_runs_that_failed_are_listed_and_others_must_be_evaluated(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config)
    storage.delete(location(config, "kd-multilingual-f0-s42"))
    with pytest.raises(StageError, match="no predictions of kd-multilingual-f0-s42"):
        write_report(config)
    report.write_report(config, [build_run_graph(config)], failed_runs=["kd-multilingual-f0-s42"])
    notes = report.read_report(config)["notes"]
    assert "Runs that failed and are missing from the tables: kd-multilingual-f0-s42." in notes
    for run in ("teacher-all-f0-s42", "mtkd-multilingual-f0-s42"):
        storage.delete(location(config, run))
    graph = build_run_graph(config)
    with pytest.raises(StageError, match="no predictions of a student"):
        report.write_report(config, [graph], failed_runs=[run.id for run in graph.students])


def test_report_is_recorded_and_rebuilt_when_predictions_change(tmp_path: Path) -> None:
    config = small(str(tmp_path))
    evaluate(config)
    write_report(config)
    folder = storage.join(config.folder, "report")
    before = record.read_record(folder)
    assert before is not None
    assert record.is_done(folder, before["fingerprint"])
    assert before["fingerprint"]["stage"] == "report"
    assert set(before["fingerprint"]["inputs"]) == {"teacher-en-f0-s42", "mtkd-multilingual-f0-s42"}
    evaluate(config, STRENGTH | {"mtkd": 0.0})
    write_report(config)
    after = record.read_record(folder)
    assert after is not None
    old, new = before["fingerprint"]["inputs"], after["fingerprint"]["inputs"]
    assert {model for model in new if new[model] != old[model]} == {"mtkd-multilingual-f0-s42"}


@pytest.mark.parametrize(
    ("strength", "sentences"),
    [
        (
            {"teacher": 0.0, "kd": 0.5, "mtkd": 4.0},
            (r"with FT multilingual: \+\d.* better \(p ", r"with KD multilingual: \+\d.* better \(p "),
        ),
        (
            {"teacher": 4.0, "kd": 0.5, "mtkd": 0.5},
            (r"with FT multilingual: -\d.* worse \(p ", r"with KD multilingual: "),
        ),
        ({"teacher": 0.5, "kd": 4.0, "mtkd": 0.0}, (r"with KD multilingual: -\d.* worse \(p ",)),
    ],
)
def test_findings_compare_the_paradigms(strength: dict[str, float], sentences: tuple[str, ...], tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en", "fi"])
    cells = [config.model_copy(update={"seed": seed}) for seed in (42, 43, 44)]
    for cell in cells:
        evaluate(cell, strength, speakers=5, utterances=8)
    content, _ = write_report(config, *cells)
    findings = "\n".join(content["notes"])
    assert all(re.search(sentence, findings) for sentence in sentences), findings


def percent(rows: list[dict[str, Any]], paradigm: str, language: str = "mean") -> str:
    """Return the UR of the only row of a paradigm and language as the report displays it."""
    (row,) = [row for row in rows if row["paradigm"] == paradigm and row.get("language", language) == language]
    return f"{100 * row['UR']:.1f} %"


def test_findings_name_the_student_that_dev_selects_and_not_the_best_on_test(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en", "fi"])
    evaluate(config, STRENGTH | {"kd": 4.0, "mtkd": 0.5})
    train(config, epochs=2, gains={"mtkd": 0.2})
    content, html = write_report(config)
    dev, test = (percent(content[table], "mtkd") for table in ("model_selection", "pooled"))
    assert select_served_student(build_run_graph(config)).id == "mtkd-multilingual-f0-s42"
    findings = content["notes"][1:4]
    assert findings[0].startswith(
        f"Selected on dev: MTKD multilingual, with UR {dev} on dev and {test} (95 % interval "
    )
    assert findings[1] == "`lakd serve` uses it: mtkd-multilingual-f0-s42."
    assert findings[2].startswith(
        f"KD multilingual has the highest UR on test ({percent(content['pooled'], 'kd')}), but dev does not select it"
    )
    assert all(finding in text_of(html) for finding in findings)
    assert all(f"note: {finding}\n" in report.format_summary(content) for finding in findings)


def test_the_selected_student_may_have_the_highest_score_on_test(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config, STRENGTH | {"kd": 4.0})
    train(config, epochs=2, gains={"kd": 0.2})
    content, html = write_report(config)
    findings = content["notes"][1:4]
    assert findings[0].startswith("Selected on dev: KD multilingual, with UR")
    assert "highest" not in " ".join(findings)
    assert [row["paradigm"] for row in content["model_selection"] if row["selected"]] == ["kd"]
    assert "KD multilingual kd-multilingual-f0-s42 selected on dev" in text_of(html)
    assert html.count(">selected on dev<") == 1


def test_grid_selects_a_setting_over_all_cells_and_serves_a_run_of_its_own_cell(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    cells = [config.model_copy(update={"seed": seed}) for seed in (42, 43)]
    for cell in cells:
        evaluate(cell, STRENGTH | {"kd": 4.0})
        train(cell, epochs=2, gains={"mtkd": 0.2} if cell.seed == 42 else {"ft": 0.4})
    content, _ = write_report(config, *cells)
    findings = content["notes"][1:4]
    dev, test = (percent(content[table], "ft") for table in ("model_selection", "pooled"))
    assert findings[0].startswith(
        f"Selected on dev: FT multilingual, with UR {dev} on dev, the mean over 2 cells, and {test} (95 % interval "
    )
    assert findings[1].startswith(
        "Used by `lakd serve`: mtkd-multilingual-f0-s42 (MTKD multilingual), the best student on dev in fold 0 with "
        "seed 42, with UR "
    )
    assert findings[2].startswith("KD multilingual has the highest UR on test")


def test_a_setting_that_lacks_cells_is_not_selected(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    cells = [config.model_copy(update={"seed": seed}) for seed in (42, 43)]
    for cell in cells:
        evaluate(cell)
        train(cell, epochs=2, gains={"mtkd": 0.4, "kd": 0.2})
    failed = "mtkd-multilingual-f0-s43"
    storage.delete(location(cells[1], failed))
    storage.delete(next(run for run in build_run_graph(cells[1]).students if run.id == failed).folder(cells[1]))
    report.write_report(config, [build_run_graph(cell) for cell in cells], failed_runs=[failed])
    finding = report.read_report(config)["notes"][1]
    assert finding.startswith("Selected on dev: KD multilingual, with UR") and "mean over 2 cells" in finding


def test_a_student_of_one_language_is_selected_by_the_mean_over_languages_and_not_served(tmp_path: Path) -> None:
    """UR on dev of one language is not comparable with the mean over two."""
    config = experiment(
        str(tmp_path), languages=["en", "fi"],
        distill={"setups": ["monolingual", "multilingual"], "paradigms": ["ft", "mtkd"]},
    )  # fmt: skip
    evaluate(config)
    dev = {"teacher-en": 0.9, "teacher-fi": 0.3, "ft-multilingual": 0.65, "mtkd-en": 0.6, "mtkd-fi": 0.8}
    for run in build_run_graph(config).students:
        UR = dev.get(run.id.removesuffix("-f0-s42"), 0.66)
        RunState(metrics=({"epoch": 1, "dev_UR": UR, "dev_ce": 1.0},)).write(run.folder(config))
    findings = write_report(config)[0]["notes"][1:3]
    assert findings[0].startswith("Selected on dev: MTKD monolingual, with UR 70.0 % on dev and ")
    assert findings[1].startswith(
        "Used by `lakd serve`: mtkd-multilingual-f0-s42 (MTKD multilingual), the best on dev of the students of all "
        "languages in fold 0 with seed 42, with UR 66.0 % on dev and "
    )


def test_monolingual_students_count_as_one_in_the_headline(tmp_path: Path) -> None:
    config = experiment(
        str(tmp_path), languages=["en", "fi"], distill={"setups": ["monolingual"], "paradigms": ["mtkd"]}
    )
    evaluate(config)
    train(config, epochs=1)
    content, html = write_report(config)
    assert [(row["model"], row["language"]) for row in content["results"] if row["paradigm"] == "mtkd"] == [
        *(("mtkd-en-f0-s42", language) for language in ("en", "mean", "all")),
        *(("mtkd-fi-f0-s42", language) for language in ("fi", "mean", "all")),
    ]
    shares = [
        np.trace(row["confusion"]) / row["n"]
        for row in content["results"]
        if row["paradigm"] == "mtkd" and row["language"] == "all"
    ]
    # every emotion is equally frequent, so UR is accuracy
    assert re.match(rf"Selected on dev: MTKD monolingual, .* and {50 * sum(shares):.1f} % \(", content["notes"][1])
    assert content["notes"][2].startswith(
        "Used by `lakd serve`: mtkd-en-f0-s42 (MTKD monolingual), of en only, because"
    )
    assert "MTKD monolingual mtkd-en-f0-s42, mtkd-fi-f0-s42" in text_of(html)


def test_human_speech_is_not_called_synthetic(tmp_path: Path) -> None:
    config = small(str(tmp_path), corpora=[{"name": "people", "root": "/data/<b>&amp;</b>"}])
    evaluate(config)
    content, html = write_report(config)
    assert "synthesizer" not in text_of(html)
    assert content["corpora"][0]["synthetic"] is False
    assert "/data/&lt;b&gt;&amp;amp;&lt;/b&gt;" in html  # escaped
    assert "Training of" not in html  # no run has metrics


def test_one_speaker_and_a_missing_emotion_become_null(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config, speakers=1)
    for name in ("teacher-en-f0-s42", "teacher-all-f0-s42", "kd-multilingual-f0-s42", "mtkd-multilingual-f0-s42"):
        rows = storage.read_table(location(config, name))
        storage.write_table(location(config, name), rows.filter(pc.not_equal(rows["emotion"], "anger")))
    content, html = write_report(config)
    for row in content["results"]:
        assert row["UR_interval"] is None
        assert row["recall"]["anger"] is None
    assert "Test has 3 of 4 classes in en (no anger): UR on test in en is over the classes present." in text_of(html)
    assert "There is no interval in en: one shows no variation." in text_of(html)
    assert not re.search(r"\bnan\b", text_of(html), re.IGNORECASE)


def test_classes_that_dev_lacks_are_a_caveat(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en", "fi"])
    cells = [config.model_copy(update={"fold": fold}) for fold in (0, 1)]
    for cell in cells:
        evaluate(cell)
        missing = {"fi": ["anger", "neutral"]} if cell.fold == 1 else {}
        for run in build_run_graph(cell).students:
            entry = {"epoch": 1, "dev_UR": 0.5, "dev_ce": 1.0, "dev_missing_emotions": missing}
            RunState(metrics=(entry,)).write(run.folder(cell))
    content, html = write_report(config, *cells)
    sentence = (
        "Dev has 2 of 4 classes in fi (no anger, neutral) in fold 1: UR on dev in fi is over the classes present."
    )
    assert sentence in content["notes"] and sentence in text_of(html)


def test_curves_of_a_resumed_run_have_each_epoch_once(tmp_path: Path) -> None:
    config = small(str(tmp_path))
    (run,) = build_run_graph(config).teachers
    lines = [
        '{"epoch": 1, "loss": 1.5, "dev_UR": 0.25, "dev_recall": {"en": 0.25}}',
        '{"epoch": 2, "loss": 1.2, "dev_UR": 0.5, "dev_recall": {"en": 0.5}}',
        '{"epoch": 2, "loss": 1.1, "dev_UR": 0.6, "dev_recall": {"en": 0.6}, "seconds": 9}',
        '{"epoch": 3, "loss": null}',
        '{"epoch": 4, "lo',
    ]
    storage.write_bytes(storage.join(run.folder(config), "metrics.jsonl"), "\n".join(lines).encode())
    (curve,) = curves.read_curves([run, run], config)
    assert curve.epochs == [1, 2, 3]
    np.testing.assert_equal(curve.loss, [1.5, 1.1, math.nan])
    np.testing.assert_equal(curve.dev_UR, [0.25, 0.6, math.nan])
    np.testing.assert_equal(curve.dev_recall, {"en": [0.25, 0.6, math.nan]})


def test_missing_predictions_name_the_stage_to_run(tmp_path: Path) -> None:
    config = experiment(str(tmp_path))
    with pytest.raises(StageError, match=r"no predictions of kd-multilingual-f0-s42, .*run the stage `evaluate`"):
        write_report(config)


def test_models_evaluated_on_different_utterances_are_not_compared(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config)
    file = location(config, "mtkd-multilingual-f0-s42")
    storage.write_table(file, storage.read_table(file).slice(1))
    with pytest.raises(DataError, match="different test utterances in en"):
        write_report(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pa.concat_tables([t, t]), "more than once"),
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: t.drop_columns(["speaker"]), "not a table of predictions"),
        (
            lambda t: t.set_column(t.schema.get_field_index("emotion"), "emotion", pa.array(["fear"] * len(t))),
            "found the labels",
        ),
        (
            lambda t: t.drop_columns(["p_neutral"]),
            "has the classes anger, happiness, sadness; expected anger, happiness, neutral, sadness, in any order",
        ),
        (
            lambda t: t.rename_columns({"p_neutral": "p_fear"}),
            "has the classes anger, happiness, fear, sadness; expected anger, happiness, neutral, sadness",
        ),
    ],
)
def test_invalid_predictions_are_rejected(change: Any, message: str, tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config)
    file = location(config, "kd-multilingual-f0-s42")
    storage.write_table(file, change(storage.read_table(file)))
    with pytest.raises(DataError, match=message):
        write_report(config)


def test_marks_are_in_every_table(tmp_path: Path) -> None:
    config = small(str(tmp_path), distill={"paradigms": ["ft", "mtkd"], "setups": ["multilingual"]})
    evaluate(config)
    train(config)
    for run in build_run_graph(config).evaluated:
        rows = storage.read_table(location(config, run.id))
        marked = pa.array(["someone/something"] * len(rows))
        field = rows.schema.get_field_index("undisclosed_models")
        storage.write_table(location(config, run.id), rows.set_column(field, rows.schema.field(field), marked))
    content, html = write_report(config)
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    named = [text_of(table) for table in tables if "MTKD multilingual" in table]
    assert len(named) == 3 and content["comparisons"]
    assert all("MTKD multilingual*" in text for text in named)
    assert "* started from or distilled from someone/something" in text_of(html)
