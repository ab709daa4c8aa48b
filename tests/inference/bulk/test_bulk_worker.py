"""The worker without Ray: predictions of a batch equal those of single recordings."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny_models as tiny
from support.samples import BAD, LENGTHS

from lakd_ray import storage
from lakd_ray.audio import Recording
from lakd_ray.data import schema
from lakd_ray.inference.bulk.inputs import InputEntry, find_inputs
from lakd_ray.inference.bulk.worker import BulkWorker
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.predictor import Predictor


@pytest.fixture
def worker(model):
    worker = BulkWorker(model, 1, "fr", 2.5)
    yield worker
    worker.close()


def test_a_different_backend(model, clips, predict_file):
    worker = BulkWorker(model, 1, "fr", 2.5, "torch-int8")
    try:
        row = worker.predict_part([InputEntry("a", f"{clips}/a.wav", None)]).to_pylist()[0]
    finally:
        worker.close()
    expected = predict_file((clips / "a.wav").read_bytes(), language="fr").probabilities
    probabilities = {emotion: row[f"p_{emotion}"] for emotion in expected}
    assert probabilities == pytest.approx(expected, abs=0.2) and probabilities != pytest.approx(expected, abs=1e-7)


def test_rows_equal_the_results_of_the_endpoint_in_input_order(worker, clips, predict_file):
    entries = [
        InputEntry(entry.id, entry.path, "en" if entry.id == "a.wav" else None)
        for entry in find_inputs(str(clips)).entries
    ]
    entries.append(InputEntry("missing", f"{clips}/missing.wav", None))
    table = worker.predict_part(entries)
    assert table.schema == schema.bulk_predictions_schema(predict_file.info.emotions)
    assert [row["id"] for row in table.to_pylist()] == [entry.id for entry in entries]
    rows = {row["id"]: row for row in table.to_pylist()}
    kinds = {name: row["kind"] for name, row in rows.items() if row["status"] == "quarantined"}
    assert set(kinds) == {*BAD, "sub/e.mp3", "missing"}  # the MP3 is longer than 2.5 s
    assert (kinds["sub/short.wav"], kinds["sub/e.mp3"], kinds["missing"]) == ("short", "long", "missing")
    for name in kinds:
        assert rows[name]["reason"] and rows[name]["emotion"] is None and rows[name]["p_anger"] is None
    for name in sorted({*LENGTHS} - {*kinds}):
        row, expected = (
            rows[name],
            predict_file((clips / name).read_bytes(), language="en" if name == "a.wav" else "fr"),
        )
        assert row["status"] == "ok" and row["kind"] is row["reason"] is None
        probabilities = {emotion: row[f"p_{emotion}"] for emotion in predict_file.info.emotions}
        assert probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert row["warnings"] == [warning.code for warning in expected.warnings]
        for field in ("emotion", "language", "language_probability", "duration_s", "model", "version"):
            assert row[field] == getattr(expected, field), field


LANGUAGES = [None, "fi", "xx", None]


def test_results_of_a_batch_equal_results_one_by_one():
    """A language-aware model identifies the language of some recordings and is given it for others."""
    predictor = Predictor(tiny.aware(), tiny.card(tiny.LANGUAGES))
    random = np.random.default_rng(1)
    waves = [0.1 * random.standard_normal(round(16_000 * seconds)) for seconds in (1.0, 0.3, 2.0, 0.6)]
    recordings = [Recording(wave_T.astype(np.float32), False, 0.0) for wave_T in waves]
    options = [PredictOptions(language=code) for code in LANGUAGES]
    batch = predictor.predict_recordings(recordings, options)
    for recording, option, result in zip(recordings, options, batch, strict=True):
        (single,) = predictor.predict_recordings([recording], [option])
        assert result.probabilities == pytest.approx(single.probabilities, abs=1e-5)
        assert (result.language, result.warnings) == (single.language, single.warnings)
        assert result.language_probability == pytest.approx(single.language_probability, abs=1e-5)
    assert predictor.predict_recordings([], []) == []


def test_timelines_of_a_batch_equal_those_one_by_one():
    predictor = Predictor(tiny.model(), tiny.card())
    random = np.random.default_rng(1)
    waves = [0.1 * random.standard_normal(round(16_000 * seconds)) for seconds in (1.0, 0.3, 2.0)]
    recordings = [Recording(wave_T.astype(np.float32), False, 0.0) for wave_T in waves]
    options = [PredictOptions(window_s=0.5, hop_s=0.25), PredictOptions(window_s=0.5, top_k=1), PredictOptions()]
    batch = predictor.predict_recordings(recordings, options)
    assert [result.segments and len(result.segments) for result in batch] == [3, 1, None]
    for recording, option, result in zip(recordings, options, batch, strict=True):
        (single,) = predictor.predict_recordings([recording], [option])
        assert result.probabilities == pytest.approx(single.probabilities, abs=1e-5)
        for part, alone in zip(result.segments or (), single.segments or (), strict=True):
            assert part.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
            assert (part.start_s, part.end_s, part.emotion) == (alone.start_s, alone.end_s, alone.emotion)


def test_a_batch_takes_one_call_of_the_model(monkeypatch):
    predictor = Predictor(tiny.model(), tiny.card())
    calls: list[int] = []
    predict_logits = predictor._predict_logits
    monkeypatch.setattr(
        predictor, "_predict_logits", lambda waves, codes: calls.append(len(waves)) or predict_logits(waves, codes)
    )
    silence = Recording(np.zeros(8000, np.float32), False, 0.0)
    predictor.predict_recordings([silence] * 5, [PredictOptions()] * 5)
    assert calls == [5]


def test_an_error_of_the_model_reaches_the_caller(monkeypatch):
    predictor = Predictor(tiny.model(), tiny.card())

    def raise_error(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "_predict_logits", raise_error)
    silence = Recording(np.zeros(8000, np.float32), False, 0.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.predict_recordings([silence] * 2, [PredictOptions()] * 2)


def write_part(worker: BulkWorker, path: Path, entries: list[InputEntry]) -> str:
    """Call the worker as Ray Data does, and return the error in its output."""
    values = json.dumps([list(vars(entry).values()) for entry in entries])
    return worker(pa.table({"part": [str(path)], "entries": [values]}))["error"][0].as_py()


def test_a_part_is_written_or_an_error_is_returned(worker, clips, tmp_path):
    assert write_part(worker, tmp_path / "parts/one.parquet", [InputEntry("a", f"{clips}/a.wav", "en")]) == ""
    assert pq.read_table(tmp_path / "parts/one.parquet")["id"].to_pylist() == ["a"]
    (tmp_path / "file").touch()
    assert "cannot write" in write_part(
        worker, tmp_path / "file/one.parquet", [InputEntry("a", f"{clips}/a.wav", "en")]
    )


def test_a_corrupted_checkpoint_is_an_error(tmp_path, clips):
    folder = tiny.checkpoint(tmp_path)
    storage.write_bytes(f"{folder}/model.safetensors", b"damage")
    worker = BulkWorker(folder, 1, None, 120.0)
    assert "is damaged" in write_part(worker, tmp_path / "one.parquet", [InputEntry("a", f"{clips}/a.wav", None)])
    worker.close()
    assert not (tmp_path / "one.parquet").exists()
