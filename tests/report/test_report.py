"""The report on predictions as evaluation would write them, drawn at random with a known strength."""

import json
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
from lakd_ray.data.schema import LANGUAGE_CONDITIONS_SCHEMA, PREDICTIONS_SCHEMA
from lakd_ray.errors import DataError, StageError
from lakd_ray.report import curves, findings, predictions
from lakd_ray.report.rows import build_result_rows
from lakd_ray.runs import record
from lakd_ray.runs.graph import Run, build_run_graph
from lakd_ray.runs.layout import language_conditions_folder, predictions_folder

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
    """One language, one student: few pictures to draw."""
    return experiment(storage_folder, **{"languages": ["en"], "distill": {"paradigms": ["mtkd"]}} | changes)


def table(run: Run, paradigm: str, config: Experiment, *, strength: float, speakers: int, utterances: int) -> pa.Table:
    """`utterances` per speaker, language and emotion; the larger `strength`, the more are right."""
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
                        "sentence": "s1",
                        "sentence_in_train": number == 0,
                        "fold": config.fold,
                        "seed": config.seed,
                        "paradigm": paradigm,
                        "variant": run.variant,
                        "unknown": "",
                        "setup": run.setup,
                        "model": run.id,
                        "emotion": config.emotions[label],
                        "probabilities": probabilities_C.tolist(),
                    }
                )
    return pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**32


def location(config: Experiment, run_id: str) -> str:
    return storage.join(predictions_folder(config), f"{run_id}.parquet")


def evaluate(config: Experiment, strength: dict[str, float] = STRENGTH, speakers: int = 3, utterances: int = 2) -> None:
    """Write the predictions of every run; monolingual students answer in their own language only."""
    for run in build_run_graph(config).evaluated:
        paradigm = "teacher" if run.stage == "teachers" else run.paradigm
        answers = table(run, paradigm, config, strength=strength[paradigm], speakers=speakers, utterances=utterances)
        if run.stage == "distill" and run.setup == "monolingual":
            answers = answers.filter(pc.equal(answers["language"], run.languages[0]))
        storage.write_table(location(config, run.id), answers)


def train(config: Experiment, epochs: int = 8) -> None:
    """Write metrics.jsonl of every run."""
    rng = np.random.default_rng(0)
    for run in build_run_graph(config).evaluated:
        lines = []
        for epoch in range(1, epochs + 1):
            recall = {language: 1 - 0.75 * np.exp(-epoch / 6) + rng.normal(0, 0.03) for language in run.languages}
            entry = {"epoch": epoch, "loss": 1.4 * np.exp(-epoch / 5), "dev_recall": recall}
            lines.append(json.dumps(entry | {"dev_UR": float(np.mean(list(recall.values())))}))
        text = "\n".join(lines) + "\n"
        storage.write_bytes(storage.join(run.folder(config), "metrics.jsonl"), text.encode())


def made(config: Experiment) -> tuple[dict[str, Any], str]:
    """report.json and report.html."""
    page = report.write_report(build_run_graph(config))
    assert page == storage.join(config.folder, "report", "report.html")
    return storage.read_json(storage.join(config.folder, "report", "report.json")), storage.read_bytes(page).decode()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, dict[str, Any], str]:
    config = experiment(str(tmp_path_factory.mktemp("plain")))
    evaluate(config)
    train(config)
    return config, *made(config)


def numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from numbers(branch)
    elif isinstance(tree, int | float):
        yield tree


def text_of(html: str) -> str:
    """What a reader sees, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_json_has_a_row_for_each_run_and_language_and_one_for_all(plain: Any) -> None:
    _, content, _ = plain
    assert set(content) == {"experiment", "corpora", "notes", "results", "languages"}
    assert content["experiment"] == "fake"
    assert content["corpora"] == [{"name": "demo", "importer": "espeak", "synthetic": True}]
    found = [(row["paradigm"], row["setup"], row["model"], row["language"]) for row in content["results"]]
    models = [
        ("teacher", "monolingual", "teacher-en-f0-s42"),
        ("teacher", "monolingual", "teacher-fi-f0-s42"),
        ("teacher", "monolingual", "teacher-fr-f0-s42"),
        ("ft", "multilingual", "teacher-all-f0-s42"),  # trained exactly as the ft student would be
        ("kd", "multilingual", "kd-multilingual-f0-s42"),
        ("mtkd", "multilingual", "mtkd-multilingual-f0-s42"),
    ]
    assert found == [(*model, language) for model in models for language in ("en", "fi", "fr", "all")]


def test_rows_have_exactly_the_agreed_keys_and_plain_values(plain: Any) -> None:
    _, content, _ = plain
    for row in content["results"]:
        assert set(row) == {
            *("paradigm", "setup", "language", "fold", "seed", "UR", "WR", "macro_f1", "ece", "n"),
            *("UR_interval", "recall", "confusion", "model", "variant", "unknown"),
        }
        assert row["fold"] == 0 and row["seed"] == 42
        low, high = row["UR_interval"]
        assert 0 <= low <= row["UR"] <= high <= 1
        assert np.sum(row["confusion"]) == row["n"] == (72 if row["language"] == "all" else 24)
    assert all(math.isfinite(number) for number in numbers(content))


def test_a_row_can_be_recomputed_from_the_file(plain: Any) -> None:
    config, content, _ = plain
    rows = storage.read_table(location(config, "kd-multilingual-f0-s42")).to_pylist()
    rows = [row for row in rows if row["language"] == "fi"]
    recall = {}
    for emotion in config.emotions:
        answers = [config.emotions[np.argmax(row["probabilities"])] for row in rows if row["emotion"] == emotion]
        recall[emotion] = answers.count(emotion) / len(answers)
    (found,) = [r for r in content["results"] if r["model"] == "kd-multilingual-f0-s42" and r["language"] == "fi"]
    assert found["recall"] == pytest.approx(recall)
    assert found["UR"] == pytest.approx(sum(recall.values()) / 4)


def test_page_has_a_table_of_what_students_are_told_of_the_language(tmp_path: Path, plain: Any) -> None:
    recipe = {"model": RECIPE["model"] | {"language_aware": {}}}
    config = small(str(tmp_path), student=recipe)
    evaluate(config)
    (run,) = build_run_graph(config).students
    told = [
        {
            "utterance": f"u{number}", "corpus": "demo", "corpus_in_train": True, "language": "en", "model": run.id,
            "condition": condition, "predicted_language": "en", "emotion": config.emotions[number],
            "probabilities": np.eye(4)[number if condition == "given" else 0].tolist(),
        }
        for condition in ("given", "identified", "unknown")
        for number in range(4)
    ]  # fmt: skip
    place = storage.join(language_conditions_folder(config), f"{run.id}.parquet")
    storage.write_table(place, pa.Table.from_pylist(told, schema=LANGUAGE_CONDITIONS_SCHEMA))
    content, page = made(config)
    assert [row["UR"] for row in content["languages"] if row["language"] == "all"] == [1.0, 0.25, 0.25]
    assert f"{run.id} en 100.0 25.0 25.0 - 100.0 -" in text_of(page)
    assert "cannot be told apart here" in text_of(page)
    assert "told of the language" not in text_of(plain[2])


def test_page_asks_nothing_of_the_network(plain: Any) -> None:
    _, _, html = plain
    assert not re.findall(r"https?://|@import|<script|<link", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert "url(" not in html and "default-src 'none'" in html


def test_page_has_all_pictures_with_words_for_them(plain: Any) -> None:
    _, _, html = plain
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    assert sum(alt.startswith("Unweighted recall") for alt in alts) == 4
    assert sum(alt.startswith("Recall of each emotion") for alt in alts) == 4
    assert sum(alt.startswith("Confusion matrix") for alt in alts) == 3 * 4  # students only
    assert sum(alt.startswith("Training of") for alt in alts) == 6
    assert html.count("<img") == len(alts) == 26


@pytest.mark.parametrize(("importer", "synthetic", "told"), [("csv", True, 1), ("csv", None, 0), ("espeak", None, 1)])
def test_whose_speech_no_person_spoke(plain: Any, importer: str, synthetic: bool | None, told: int) -> None:
    config, *_ = plain
    corpus = config.corpora[0].model_copy(update={"importer": importer, "synthetic": synthetic})
    assert len(findings.synthetic_corpus_warnings(config.model_copy(update={"corpora": (corpus,)}))) == told


def test_page_says_what_a_reader_must_know(plain: Any) -> None:
    _, content, html = plain
    text = text_of(html)
    assert "Corpus demo is synthetic: a synthesiser spoke, no person did." in text
    assert "say nothing about human emotion" in text
    assert "Intervals are 95 % bootstraps over test speakers (en 3, fi 3, fr 3). With fewer than 10" in text
    assert "sentence is also said in train, by others: en 3 of 24, fi 3 of 24, fr 3 of 24." in text
    assert "FT multilingual is the run teacher-all-f0-s42" in text
    assert all(note in text for note in content["notes"])
    assert "lam: 0.07692307692307693" in text  # the experiment file
    assert f"lakd-ray {record.package_versions()['lakd-ray']}" in text


def test_headline_table_is_in_percent(plain: Any) -> None:
    _, content, html = plain
    (row,) = [r for r in content["results"] if r["model"] == "mtkd-multilingual-f0-s42" and r["language"] == "all"]
    low, high = row["UR_interval"]
    cells = f"{100 * row['UR']:.1f} {100 * low:.1f}–{100 * high:.1f} {100 * row['WR']:.1f}"  # noqa: RUF001  # a range
    assert f"MTKD multilingual mtkd-multilingual-f0-s42 {cells}" in text_of(html)


def test_summary_is_an_aligned_table(plain: Any) -> None:
    _, content, _ = plain
    lines = report.format_summary(content["results"]).splitlines()
    assert len(lines) == 2 + 6
    places = [lines[0].index(name) for name in ("model", "all", "en", "fi", "fr")]
    assert all(line[place - 2 : place] == "  " and line[place] != " " for line in lines[1:] for place in places)
    assert lines[-1].startswith("MTKD multilingual  ")


def test_report_is_recorded_and_made_anew_when_predictions_change(tmp_path: Path) -> None:
    config = small(str(tmp_path))
    evaluate(config)
    report.write_report(build_run_graph(config))
    folder = storage.join(config.folder, "report")
    before = record.read_record(folder)
    assert before is not None
    assert record.is_done(folder, before["fingerprint"])
    assert before["fingerprint"]["stage"] == "report"
    assert set(before["fingerprint"]["inputs"]) == {"teacher-en-f0-s42", "mtkd-multilingual-f0-s42"}
    evaluate(config, STRENGTH | {"mtkd": 0.0})
    report.write_report(build_run_graph(config))
    after = record.read_record(folder)
    assert after is not None
    changed = {
        model
        for model, digest in after["fingerprint"]["inputs"].items()
        if digest != before["fingerprint"]["inputs"][model]
    }
    assert changed == {"mtkd-multilingual-f0-s42"}


@pytest.mark.parametrize(
    ("strength", "sentences"),
    [
        ({"teacher": 0.0, "kd": 0.5, "mtkd": 4.0}, ("Best student: MTKD", "MTKD beats FT by", "MTKD beats KD by")),
        ({"teacher": 4.0, "kd": 0.5, "mtkd": 0.5}, ("Best student: FT", "FT beats MTKD by", "do not decide")),
        ({"teacher": 0.5, "kd": 4.0, "mtkd": 0.0}, ("Best student: KD", "KD beats MTKD by")),
    ],
)
def test_findings_name_the_winner(strength: dict[str, float], sentences: tuple[str, ...], tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en", "fi"])
    evaluate(config, strength, speakers=5, utterances=4)
    students = predictions.group_students(predictions.read_predictions(build_run_graph(config)))
    rows = [row for one in students for row in build_result_rows(one, config.languages, config.emotions)]
    said = " ".join([findings.describe_best_student(rows), *findings.compare_paradigms(students, config.emotions)])
    assert all(sentence in said for sentence in sentences)


def test_monolingual_students_count_as_one_in_the_headline(tmp_path: Path) -> None:
    config = experiment(
        str(tmp_path), languages=["en", "fi"], distill={"setups": ["monolingual"], "paradigms": ["mtkd"]}
    )
    evaluate(config)
    content, html = made(config)
    assert [(row["model"], row["language"]) for row in content["results"] if row["paradigm"] == "mtkd"] == [
        *(("mtkd-en-f0-s42", "en"), ("mtkd-en-f0-s42", "all")),
        *(("mtkd-fi-f0-s42", "fi"), ("mtkd-fi-f0-s42", "all")),
    ]
    right, total = 0, 0
    for row in content["results"]:
        if row["paradigm"] == "mtkd" and row["language"] == "all":
            right, total = right + np.trace(row["confusion"]), total + row["n"]
    # every emotion is equally frequent, so pooled UR is accuracy
    assert f"Best student: MTKD monolingual, with UR {100 * right / total:.1f} %" in content["notes"][1]
    assert "MTKD monolingual mtkd-en-f0-s42, mtkd-fi-f0-s42" in text_of(html)


def test_people_who_spoke_are_not_called_synthetic(tmp_path: Path) -> None:
    config = small(str(tmp_path), corpora=[{"name": "people", "root": "/data/<b>&amp;</b>"}])
    evaluate(config)
    content, html = made(config)
    assert "synthesiser" not in text_of(html)
    assert content["corpora"][0]["synthetic"] is False
    assert "/data/&lt;b&gt;&amp;amp;&lt;/b&gt;" in html  # and what they write is not taken for HTML
    assert "Training of" not in html  # no run left any metrics


def test_one_speaker_and_a_missing_emotion_become_null(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config, speakers=1)
    for name in ("teacher-en-f0-s42", "teacher-all-f0-s42", "kd-multilingual-f0-s42", "mtkd-multilingual-f0-s42"):
        answers = storage.read_table(location(config, name))
        storage.write_table(location(config, name), answers.filter(pc.not_equal(answers["emotion"], "anger")))
    content, html = made(config)
    for row in content["results"]:
        assert row["UR_interval"] is None
        assert row["recall"]["anger"] is None
    assert "No test utterance in en has anger" in text_of(html)
    assert "no interval can be given" in text_of(html)
    assert not re.search(r"\bnan\b", text_of(html), re.IGNORECASE)


def test_curves_survive_a_run_that_was_cut_off_and_continued(tmp_path: Path) -> None:
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
        report.write_report(build_run_graph(config))


def test_models_judged_on_different_utterances_are_not_compared(tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config)
    answers = storage.read_table(location(config, "mtkd-multilingual-f0-s42"))
    storage.write_table(location(config, "mtkd-multilingual-f0-s42"), answers.slice(1))
    with pytest.raises(DataError, match="different test utterances in en"):
        report.write_report(build_run_graph(config))


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
            lambda t: t.set_column(
                t.schema.get_field_index("probabilities"), "probabilities", pa.array([[0.5, 0.5]] * len(t))
            ),
            "expected 4 probabilities",
        ),
    ],
)
def test_damaged_predictions_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    config = experiment(str(tmp_path), languages=["en"])
    evaluate(config)
    where = location(config, "kd-multilingual-f0-s42")
    storage.write_table(where, change(storage.read_table(where)))
    with pytest.raises(DataError, match=message):
        report.write_report(build_run_graph(config))
