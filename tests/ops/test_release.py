"""Checkpoints for release."""

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard
from support import fake_data as noise
from support import tiny_models as tiny
from transformers import AutoModelForAudioClassification

from lakd_ray import storage
from lakd_ray.audio import decode_audio
from lakd_ray.cli import main
from lakd_ray.config import Experiment, LanguageAwareHeadConfig, ModelConfig
from lakd_ray.data.provenance import DataExposure, Provenance
from lakd_ray.errors import ConfigError, DataLeakageError
from lakd_ray.inference import backend_accuracy
from lakd_ray.inference.predictor import Predictor
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import build_model, load_checkpoint, save_checkpoint
from lakd_ray.models.checkpoint import read_metadata
from lakd_ray.models.known_pretrained import known_provenance
from lakd_ray.models.origin import read_origin
from lakd_ray.ops import release


def test_a_release_is_the_same_model_without_speaker_names(tmp_path: Path, capsys):
    location = tiny.checkpoint(tmp_path)
    assert main.main(["export", location, str(tmp_path / "released")]) == 0
    assert "exported to" in capsys.readouterr().out
    text = (tmp_path / "released" / "lakd.json").read_text()
    assert "c:one" not in text and str(tmp_path) not in text
    (original, before), (copy, after) = load_checkpoint(location), load_checkpoint(str(tmp_path / "released"))
    assert all(map(torch.equal, original.state_dict().values(), copy.state_dict().values()))
    assert after.provenance.trained_on.overlap(before.provenance.trained_on) == ["c:one", "1 identical recordings"]
    assert (after.emotions, after.languages, after.model_id) == (before.emotions, before.languages, before.model_id)
    AutoModelForAudioClassification.from_pretrained(tmp_path / "released")


@pytest.mark.parametrize("aware", [None, tiny.AWARE], ids=["plain", "language-aware"])
def test_no_file_has_a_path_of_the_training(tmp_path: Path, aware: LanguageAwareHeadConfig | None):
    (tmp_path / "secret-place").mkdir()
    start = tiny.checkpoint(tmp_path / "secret-place")
    model = build_model(
        ModelConfig(pretrained=start, language_aware=aware), PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES
    )
    model.network.config.backbone = {**getattr(model.network.config, "backbone", {}), "_name_or_path": start}
    (tmp_path / "scratch").mkdir()
    recipe = {"pretrained": start, "freeze_encoder": True}
    card = replace(tiny.card(), training={"run": {"recipe": {"model": recipe}}, "layers": [0, 2]})
    save_checkpoint(str(tmp_path / "trained"), model.network, card, scratch=tmp_path / "scratch")
    release.export_checkpoint(str(tmp_path / "trained"), str(tmp_path / "released"))
    leaks = [file.name for file in (tmp_path / "released").iterdir() if b"secret-place" in file.read_bytes()]
    assert leaks == []
    model_copy, released = load_checkpoint(str(tmp_path / "released"))
    assert model_copy.languages == model.languages and released.training["layers"] == [0, 2]
    assert released.is_encoder_frozen


def test_two_releases_cannot_be_compared_by_their_hashes(tmp_path: Path):
    location = tiny.checkpoint(tmp_path)
    speakers = []
    for name in ("a", "b"):
        main.main(["export", location, str(tmp_path / name)])
        speakers.append(
            set(json.loads((tmp_path / name / "lakd.json").read_text())["provenance"]["trained_on"]["speakers"])
        )
    assert not speakers[0] & speakers[1]


def test_no_file_is_overwritten_and_no_damaged_checkpoint_is_released(tmp_path: Path, capsys):
    location = tiny.checkpoint(tmp_path)
    assert main.main(["export", location, location]) == 2
    assert "is not empty" in capsys.readouterr().err
    Path(location, "model.safetensors").write_bytes(b"x")
    assert main.main(["export", location, str(tmp_path / "released")]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not list(storage.list_files(str(tmp_path / "released")))


@pytest.mark.parametrize("missing", ["SEAL.json", "lakd.json"])
def test_a_folder_that_is_not_a_checkpoint_is_rejected(tmp_path: Path, missing: str):
    location = tiny.checkpoint(tmp_path)
    Path(location, missing).unlink()
    assert main.main(["export", location, str(tmp_path / "released")]) == 2


RUN: dict[str, Any] = {
    "id": "mtkd-multilingual-f0-s42",
    "paradigm": "mtkd",
    "setup": "multilingual",
    "fold": 0,
    "seed": 42,
    "variant": None,
    "recipe": {"model": {"config": {"model_type": "wav2vec2"}}},
    "loss": {"temperature": 5.0, "lam": 0.25, "weighting": "similarity", "standardize_logits": False},
    "teachers": ["teacher-en-f0-s42", "external-x"],
    "teacher_languages": ["en", None],
}
DEV = {"epoch": 3, "epochs": 8, "dev_UR": 0.7881, "dev_WR": 0.7, "dev_recall": {"en": 0.8854}}
DEV |= {"calibration_temperature": 1.7}


def trained(folder: Path, *, aware: bool = False, **training: Any) -> str:
    """Write a checkpoint with a record of its training, and return its location."""
    network = tiny.aware(initializer_range=0.5) if aware else tiny.model(initializer_range=0.5)
    metadata = replace(tiny.card(("en", "fi", "fr")), training={"run": RUN, "dev": DEV, **training})
    (folder / "scratch").mkdir()
    save_checkpoint(str(folder / "trained"), network.network, metadata, scratch=folder / "scratch")
    return str(folder / "trained")


def report(folder: Path, model: str = RUN["id"]) -> str:
    row = {
        "paradigm": "mtkd", "setup": "multilingual", "variant": None, "undisclosed_models": "",
        "settings_selected_on": "c:nine", "model": model,
        "fold": 0, "seed": 42, "n": 384, "UR": 0.7943, "UR_interval": [0.7239, 0.8541], "WR": 0.7801, "macro_f1": 0.79,
        "ece": 0.1, "recall": {**dict.fromkeys(PAPER_EMOTIONS, 0.6), "anger": None}, "confusion": [],
    }  # fmt: skip
    rows = [row | {"language": "en", "UR_interval": None}, row | {"language": "all"}]
    content = {"corpora": [{"name": "c", "importer": "espeak", "synthetic": True}], "results": rows}
    (folder / "report.json").write_text(json.dumps(content))
    return str(folder / "report.json")


def card_of(folder: Path) -> str:
    return (folder / "released" / "README.md").read_text(encoding="utf-8")


def test_the_card_has_the_training_and_the_results(tmp_path: Path):
    assert main.main(["export", trained(tmp_path), str(tmp_path / "released"), "--report", report(tmp_path)]) == 0
    text = card_of(tmp_path)
    for part in (
        "distilled from several teachers at once (MTKD), multilingual, fold 0, seed 42",
        "teacher-en-f0-s42 (en), external-x (several languages).",
        "temperature 5 and lambda 0.25 (share of distillation); teachers are weighted by `similarity`",
        "initialized from random weights",
        "divide logits by 1.7 before the softmax (fitted on dev)",
        "in this order: anger, happiness, neutral, sadness",
        "1 recordings of 1 speakers, and selected on 1 different speakers (dev)",
        "epoch 3 of 8 was selected, so these scores are optimistic: UR 78.8 %, WR 70.0 %, UR in en 88.5 %",
        "| all utterances | 384 | 79.4 [72.4, 85.4] | 78.0 | 79.0 | 10.0 | - | 60.0 | 60.0 | 60.0 |\n",
        "| en | 384 | 79.4 | 78.0 |",
        "**Synthetic speech**: c comes from a synthesizer",
        "were selected on dev speakers, some of which are test speakers here (c:nine): these scores are optimistic",
        "| c | espeak |",
        "Regulation (EU) 2024/1689",
        "Art. 5(1)(f)",
        "Art. 50(3)",
        "Annex III, point 1(c)",
        "workplace and education institutions, except for medical or safety reasons",
    ):
        assert part in text, part
    assert "model.onnx" not in text and "language_models" not in text


def test_the_card_has_valid_metadata_of_the_hub(tmp_path: Path):
    release.export_checkpoint(trained(tmp_path), str(tmp_path / "released"), report=report(tmp_path))
    data = ModelCard(card_of(tmp_path)).data
    assert (data.license, data.language, data.library_name) == ("unknown", ["en", "fi", "fr"], "transformers")
    assert data.pipeline_tag == "audio-classification" and "lakd-ray" in data.tags
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in data.eval_results}
    assert results["c (all utterances)", "recall"] == 0.7943 and results["c (en)", "accuracy"] == 0.7801


def test_the_card_lists_unrecorded_facts(tmp_path: Path):
    """The checkpoint has no record of its training, and there is no report."""
    release.export_checkpoint(tiny.checkpoint(tmp_path), str(tmp_path / "released"))
    text = card_of(tmp_path)
    for part in (
        "The training of this model is not recorded.",
        "initialized from weights that are not recorded",
        "(no temperature was fitted)",
        "| c | not recorded | not recorded |",
        "It is not recorded whether the speech of c is human or synthetic, acted or spontaneous.",
        "This release has no report",
        "license: unknown\n",
    ):
        assert part in text, part
    assert "Synthetic speech" not in text and "On dev" not in text


def test_the_card_of_a_second_release_is_the_same(tmp_path: Path):
    location = trained(tmp_path)
    release.export_checkpoint(location, str(tmp_path / "released"), report=report(tmp_path))
    first = card_of(tmp_path)
    (tmp_path / "again").mkdir()
    release.export_checkpoint(str(tmp_path / "released"), str(tmp_path / "again" / "released"), report=report(tmp_path))
    again = card_of(tmp_path / "again")
    changed = "weights that are not recorded"  # the release has no recipe, which may have a path
    assert again == first.replace("random weights", changed)


def test_a_report_of_other_runs_is_rejected(tmp_path: Path):
    location = trained(tmp_path)
    with pytest.raises(ConfigError, match=r"no results of mtkd-multilingual-f0-s42, only of other:"):
        release.export_checkpoint(location, str(tmp_path / "released"), report=report(tmp_path, "other"))
    assert not (tmp_path / "released").exists()


def snippets(text: str, kind: str) -> Iterator[str]:
    return (match.group(1) for match in re.finditer(rf"```{kind}\n(.*?)```", text, re.DOTALL))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "language-aware"])
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a release with its graphs, and write a clip to predict."""
    folder = tmp_path_factory.mktemp("release")
    location = trained(folder, aware=request.param)
    assert main.main(["export", location, str(folder / "released"), "--int8"]) == 0
    noise_T = 0.1 * np.random.default_rng(0).standard_normal(24_000)
    soundfile.write(folder / "clip.wav", noise_T, 16_000)
    return folder / "released"


def test_all_snippets_of_the_card_run_and_agree(released: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(released)
    text = (released / "README.md").read_text(encoding="utf-8")
    outputs = []
    for snippet in snippets(text, "python"):
        with redirect_stdout(StringIO()) as output:
            exec(compile(snippet, "README.md", "exec"), {})
        outputs.append(yaml.safe_load(output.getvalue()))
    assert len(outputs) == 3  # transformers, this project, onnxruntime
    predictor = Predictor.load(str(released))
    wave_T = decode_audio(Path("../clip.wav").read_bytes(), source_name="clip.wav")
    expected = dict(zip(predictor.emotions, predictor.probabilities([wave_T])[0].tolist(), strict=True))
    assert max(expected.values()) > 0.3
    for output in outputs:
        assert output == pytest.approx(expected, abs=2e-3)  # printed with three digits


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the import of Ray Serve
def test_the_endpoint_of_the_card_can_be_built(released: Path):
    from lakd_ray.serve.app import build as application

    (snippet,) = snippets((released / "README.md").read_text(encoding="utf-8"), "yaml")
    (config,) = yaml.safe_load(snippet)["applications"]
    assert config["import_path"] == "lakd_ray.serve.app:build"
    assert application(config["args"] | {"checkpoint": str(released)})


def test_graphs_of_a_release_have_checksums_and_measured_differences(released: Path):
    sealed = json.loads((released / storage.CHECKSUMS_FILE).read_text())
    assert {"model.onnx", "model.int8.onnx", "onnx.json", "README.md", "lakd.json", "config.json"} <= sealed.keys()
    figures = json.loads((released / "onnx.json").read_text())
    assert figures["max_logit_difference"] <= figures["logit_tolerance"] == 1e-4
    assert figures["int8"]["int8_matmuls"] >= 12 and figures["int8"]["test"] is None
    assert 0 < figures["int8"]["max_probability_change"] < 0.2
    assert "Its accuracy is not measured" in (released / "README.md").read_text()
    one, two = (Predictor.load(str(released), backend=name) for name in ("torch", "onnx"))
    clip = np.random.default_rng(1).standard_normal(20_000).astype(np.float32)
    np.testing.assert_allclose(one.probabilities([clip]), two.probabilities([clip]), rtol=0, atol=1e-4)
    assert str(released.parent).encode() not in (released / "model.onnx").read_bytes()
    assert b'{"datasets": [], "undisclosed_models": []}' in (released / "model.onnx").read_bytes()


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Return an experiment whose test utterances are noise."""
    noise.write(tmp_path, 9)
    manifest = replace(noise.manifest(tmp_path, 0, 9), splits_N=np.array(["test"] * 9))
    monkeypatch.setattr(backend_accuracy.manifests, "load_manifest", lambda config: manifest)
    recipe = {"model": {"pretrained": "x"}}
    return Experiment.model_validate(
        {
            "name": "t", "languages": ["en"], "corpora": [{"name": "c", "importer": "espeak", "root": "x"}],
            "teacher": recipe, "student": recipe,
        }
    )  # fmt: skip


def test_int8_is_evaluated_on_the_test_utterances_of_the_experiment(tmp_path: Path, held_out: Experiment):
    release.export_checkpoint(trained(tmp_path), str(tmp_path / "released"), experiment=held_out, int8=True)
    test = json.loads((tmp_path / "released" / "onnx.json").read_text())["int8"]["test"]
    assert test["utterances"] == 9 and 0 < test["max_probability_change"] < 0.2
    text = card_of(tmp_path)
    assert "On 9 test utterances its UR is" in text and "Synthetic speech" in text


def test_test_set_has_the_test_rows_with_their_labels(tmp_path: Path, held_out: Experiment):
    clips = backend_accuracy.load_test_set(held_out, tiny.card())
    assert [len(wave) for wave in clips.waves_N] == noise.manifest(tmp_path, 0, 9).num_samples_N.tolist()
    assert clips.labels_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0] and clips.languages_N == ["en"] * 9
    plain, other = (Predictor(tiny.model(seed, initializer_range=0.5), tiny.card()) for seed in (0, 1))
    found = backend_accuracy.compare_backends(plain, other, clips)
    differ = plain.logits(clips.waves_N).argmax(axis=1) != other.logits(clips.waves_N).argmax(axis=1)
    assert found.changed_predictions == differ.sum() and found.max_probability_change > 0.01
    same = backend_accuracy.compare_backends(plain, plain, clips)
    assert (same.UR_backend, same.changed_predictions, same.max_probability_change) == (found.UR, 0, 0)


def test_training_speakers_are_not_used_for_evaluation(held_out: Experiment):
    card = tiny.card()
    trained_on = replace(card.provenance.trained_on, speakers=frozenset({"speaker-3"}))
    with pytest.raises(DataLeakageError, match="speaker-3"):
        backend_accuracy.load_test_set(
            held_out, replace(card, provenance=replace(card.provenance, trained_on=trained_on))
        )


def test_training_data_of_other_models_stays_with_the_release(tmp_path: Path):
    known = known_provenance("superb/wav2vec2-base-superb-er")
    assert known is not None
    own = Provenance(DataExposure(frozenset({"c:one"}), datasets=frozenset({"ravdess:one"})))
    inherited = own.inherit([known, Provenance(undisclosed_models=frozenset({"openai/whisper-base"}))])
    metadata = replace(tiny.card(), provenance=inherited)
    (tmp_path / "scratch").mkdir()
    save_checkpoint(str(tmp_path / "trained"), tiny.model().network, metadata, scratch=tmp_path / "scratch")
    location = release.export_checkpoint(str(tmp_path / "trained"), str(tmp_path / "released"))
    text = card_of(tmp_path)
    assert "were trained on: iemocap, librispeech, ravdess." in text
    assert "started from or was distilled from openai/whisper-base, whose training data is not known" in text
    released = read_metadata(location)
    assert released.datasets == ("iemocap", "librispeech", "ravdess")
    assert not any(":" in name for name in released.provenance.trained_on.datasets)
    evaluated = DataExposure(frozenset({"mine:Ses02F"}), datasets=frozenset({"iemocap:Ses02F"}))
    with pytest.raises(DataLeakageError, match="iemocap:Ses02F"):
        read_origin(location).check_leakage(model="m", dev=DataExposure(), test=evaluated)
    info = Predictor.load(location).info
    assert info.datasets == released.datasets and info.undisclosed_models == ("openai/whisper-base",)
