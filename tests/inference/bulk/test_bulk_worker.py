"""A worker without Ray: many recordings at once are answered as each alone is by the endpoint."""

import asyncio
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
from lakd_ray.inference.bulk.worker import BulkWorker, predict_all
from lakd_ray.inference.predictor import Predictor
from lakd_ray.inference.recordings import LocalModel, predict_recording


@pytest.fixture
def worker(model):
    made = BulkWorker(model, 1, "fr", 2.5)
    yield made
    made.close()


def test_another_backend_answers_a_part(model, clips, said):
    made = BulkWorker(model, 1, "fr", 2.5, "torch-int8")
    try:
        row = made.predict_part([InputEntry("a", f"{clips}/a.wav", None)]).to_pylist()[0]
    finally:
        made.close()
    expected = said((clips / "a.wav").read_bytes(), language="fr").probabilities
    found = {emotion: row[f"p_{emotion}"] for emotion in expected}
    assert found == pytest.approx(expected, abs=0.2) and found != pytest.approx(expected, abs=1e-7)


def test_a_part_has_the_endpoints_answers_in_the_order_of_the_inputs(worker, clips, said):
    entries = [
        InputEntry(one.id, one.path, "en" if one.id == "a.wav" else None) for one in find_inputs(str(clips)).entries
    ]
    entries.append(InputEntry("gone", f"{clips}/gone.wav", None))
    table = worker.predict_part(entries)
    assert table.schema == schema.bulk_predictions_schema(said.card.emotions)
    assert [row["id"] for row in table.to_pylist()] == [entry.id for entry in entries]
    rows = {row["id"]: row for row in table.to_pylist()}
    kinds = {name: row["kind"] for name, row in rows.items() if row["status"] == "quarantined"}
    assert set(kinds) == {*BAD, "sub/e.mp3", "gone"}  # the MP3 is longer than 2.5 s
    assert (kinds["sub/short.wav"], kinds["sub/e.mp3"], kinds["gone"]) == ("short", "long", "missing")
    for name in kinds:
        assert rows[name]["reason"] and rows[name]["emotion"] is None and rows[name]["p_anger"] is None
    for name in sorted({*LENGTHS} - {*kinds}):
        row, expected = rows[name], said((clips / name).read_bytes(), language="en" if name == "a.wav" else "fr")
        assert row["status"] == "ok" and row["kind"] is row["reason"] is None
        shares = {emotion: row[f"p_{emotion}"] for emotion in said.card.emotions}
        assert shares == pytest.approx(expected.probabilities, abs=1e-5)
        assert row["warnings"] == [remark.code for remark in expected.warnings]
        for field in ("emotion", "language", "language_probability", "duration_s", "model", "version"):
            assert row[field] == getattr(expected, field), field


async def each_alone(predictor, asked):
    return [await predict_recording(LocalModel(predictor), recording, language=code) for recording, code in asked]


def test_a_language_aware_model_hears_or_is_told_one_by_one():
    predictor = Predictor(tiny.aware(), tiny.card(tiny.LANGUAGES))
    random = np.random.default_rng(1)
    waves = [0.1 * random.standard_normal(round(16_000 * seconds)) for seconds in (1.0, 0.3, 2.0, 0.6)]
    recordings = [Recording(wave_T.astype(np.float32), False, 0.0) for wave_T in waves]
    asked = list(zip(recordings, [None, "fi", "xx", None], strict=True))
    together, alone = predict_all(predictor, asked), asyncio.run(each_alone(predictor, asked))
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.language, one.warnings) == (other.language, other.warnings)
        assert one.language_probability == pytest.approx(other.language_probability, abs=1e-5)
    assert predict_all(predictor, []) == []


def test_few_forward_passes(monkeypatch):
    predictor = Predictor(tiny.model(), tiny.card())
    calls: list[int] = []
    whole = predictor.predict_logits
    monkeypatch.setattr(
        predictor, "predict_logits", lambda waves, codes: calls.append(len(waves)) or whole(waves, codes)
    )
    silence = Recording(np.zeros(8000, np.float32), False, 0.0)
    predict_all(predictor, [(silence, None)] * 5)
    assert calls == [5]


def test_an_error_of_the_model_reaches_the_caller(monkeypatch):
    predictor = Predictor(tiny.model(), tiny.card())

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "predict_logits", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict_all(predictor, [(Recording(np.zeros(8000, np.float32), False, 0.0), None)] * 2)


def called(worker: BulkWorker, place: Path, entries: list[InputEntry]) -> str:
    told = json.dumps([list(vars(entry).values()) for entry in entries])
    return worker(pa.table({"part": [str(place)], "entries": [told]}))["error"][0].as_py()


def test_a_part_is_written_or_an_error_is_told(worker, clips, tmp_path):
    assert called(worker, tmp_path / "parts/one.parquet", [InputEntry("a", f"{clips}/a.wav", "en")]) == ""
    assert pq.read_table(tmp_path / "parts/one.parquet")["id"].to_pylist() == ["a"]
    (tmp_path / "file").touch()
    assert "cannot write" in called(worker, tmp_path / "file/one.parquet", [InputEntry("a", f"{clips}/a.wav", "en")])


def test_a_damaged_model_is_told(tmp_path, clips):
    folder = tiny.checkpoint(tmp_path)
    storage.write_bytes(f"{folder}/model.safetensors", b"damage")
    worker = BulkWorker(folder, 1, None, 120.0)
    assert "is damaged" in called(worker, tmp_path / "one.parquet", [InputEntry("a", f"{clips}/a.wav", None)])
    worker.close()
    assert not (tmp_path / "one.parquet").exists()
