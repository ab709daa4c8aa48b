"""Backends answer as torch in fp32 does, as far as their arithmetic lets them, alone and together."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support import tiny_models as tiny

from lakd_ray import storage
from lakd_ray.audio import Wave
from lakd_ray.config import Backend, LanguageAwareHeadConfig, ModelConfig
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.inference import backends
from lakd_ray.inference.backends import OnnxBackend
from lakd_ray.inference.predictor import Predictor, predict_with_models
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, onnx_export, save_checkpoint
from lakd_ray.models.onnx_runtime import OnnxRuntime, OpenVinoRuntime

LOUD = {"initializer_range": 0.5}  # so that utterances are told apart
CLOSE: dict[Backend, float] = {  # of a probability
    "torch-bf16": 0.3,
    "torch-int8": 0.2,
    "onnx": 1e-4,
    "onnx-int8": 0.2,
    "openvino": 1e-4,
    "openvino-bf16": 0.3,
}
RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVinoRuntime}


def waves(*seconds: float) -> list[Wave]:
    random = np.random.default_rng(4)
    return [random.standard_normal(round(16_000 * length)).astype(np.float32) for length in seconds]


CLIPS = waves(1.0, 0.3, 2.1, 0.6)


def whisper(aware: LanguageAwareHeadConfig | None = None) -> EmotionClassifier:
    model = ModelConfig(config=tiny.WHISPER | {"init_std": 0.5}, freeze_feature_encoder=False, language_aware=aware)
    return build_model(model, PAPER_EMOTIONS, seed=0, languages=tiny.LANGUAGES)


def frozen() -> EmotionClassifier:
    return EmotionClassifier(tiny.model(**LOUD).network, freeze_encoder=True)


LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
NETWORKS: dict[str, Callable[[], EmotionClassifier]] = {
    "group-norm": lambda: tiny.model(**LOUD),
    "language-aware": lambda: tiny.aware(**LOUD),
    "layer-norm": lambda: tiny.model(**LOUD, **LAYER_NORM),
    "frozen": frozen,
    "hubert": lambda: tiny.model(**LOUD, model_type="hubert"),
    "wavlm": lambda: tiny.model(**LOUD, model_type="wavlm"),
    "unispeech-sat": lambda: tiny.model(**LOUD, model_type="unispeech-sat"),
    "whisper": whisper,
    "whisper-language-aware": lambda: whisper(tiny.AWARE),
}
EXPORTED_QUICKLY = ("group-norm", "language-aware")  # the others, some ten seconds each, are slow tests
SHAPES = [name if name in EXPORTED_QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[EmotionClassifier, Path]]:
    """Networks and the folders of their graphs, each exported once."""
    made: dict[str, tuple[EmotionClassifier, Path]] = {}

    def export(name: str) -> tuple[EmotionClassifier, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = NETWORKS[name]().eval()
            onnx_export.export_onnx(model, folder / onnx_export.MODEL_FILE)
            onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, folder / onnx_export.INT8_MODEL_FILE)
            made[name] = model, folder
        return made[name]

    return export


def calm(model: EmotionClassifier) -> EmotionClassifier:
    """With large random weights a network is chaotic, and rounding another answer."""
    for weight in model.backbone.transformer_layers.parameters():
        weight.data /= 5
    return model.eval()


def card(model: EmotionClassifier) -> Any:
    return tiny.card(model.languages or ("en", "de"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_answers_as_torch_alone_and_in_any_batch(exported, shape, runtime):
    if runtime == "openvino" and shape.startswith("whisper"):
        pytest.skip("OpenVINO does not know its spectrogram")
    model, folder = exported(shape)
    plain = Predictor(model, card(model))
    other = Predictor(OnnxBackend(RUNTIMES[runtime](folder / onnx_export.MODEL_FILE, 1)), card(model))
    told = [None, "fi", "xx", "en"] if model.languages else None
    expected_BC, expected_BL = plain.predict_logits(CLIPS, told)
    found_BC, found_BL = other.predict_logits(CLIPS, told)
    np.testing.assert_allclose(found_BC, expected_BC, rtol=0, atol=1e-4)
    assert (found_BL is None) == (expected_BL is None) == (not model.languages)
    if found_BL is not None and expected_BL is not None:
        np.testing.assert_allclose(found_BL, expected_BL, rtol=0, atol=1e-4)
    for place, clip in enumerate(CLIPS):
        alone = other.logits([clip], None if told is None else told[place : place + 1])
        np.testing.assert_allclose(alone[0], found_BC[place], rtol=0, atol=1e-4)
    assert np.abs(expected_BC - expected_BC[0]).max() > 1e-2  # or else nothing was tested


@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantised_graph_is_close_and_has_the_weights_in_int8(exported, shape):
    model, folder = exported(shape)
    plain = Predictor(model, card(model)).probabilities(CLIPS)
    found = Predictor(OnnxBackend(OnnxRuntime(folder / onnx_export.INT8_MODEL_FILE, 1)), card(model)).probabilities(
        CLIPS
    )
    np.testing.assert_allclose(found, plain, rtol=0, atol=CLOSE["onnx-int8"])
    assert np.abs(found - plain).max() > 1e-6
    left = [node.op_type for node in onnx.load(folder / onnx_export.INT8_MODEL_FILE).graph.node]
    assert (
        left.count("MatMulInteger") >= 6 * model.backbone.num_layers
    )  # query, key, value, out and two of feed-forward


@pytest.mark.parametrize("shape", ["group-norm", pytest.param("language-aware", marks=pytest.mark.slow)])
def test_a_graph_in_bf16_is_close_and_is_another(shape, tmp_path):
    model = calm(NETWORKS[shape]())
    onnx_export.export_onnx(model, tmp_path / onnx_export.MODEL_FILE)
    try:
        runtime = OpenVinoRuntime(tmp_path / onnx_export.MODEL_FILE, 1, "bf16")
    except ConfigError:
        pytest.skip("this CPU has no bf16")
    found = Predictor(OnnxBackend(runtime), card(model)).probabilities(CLIPS)
    plain = Predictor(model, card(model)).probabilities(CLIPS)
    np.testing.assert_allclose(found, plain, rtol=0, atol=CLOSE["openvino-bf16"])
    assert np.abs(found - plain).max() > 1e-6


@pytest.mark.slow
def test_a_network_that_openvino_does_not_know_is_told(exported):
    with pytest.raises(CheckpointError, match=r"OpenVINO cannot load .*STFT.* use the torch backend"):
        OpenVinoRuntime(exported("whisper")[1] / onnx_export.MODEL_FILE, 1)


def test_a_cpu_without_bf16_is_told_what_to_take(exported, monkeypatch):
    class Old:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr("openvino.Core", Old)
    with pytest.raises(ConfigError, match="no bf16 arithmetic: take the backend openvino"):
        OpenVinoRuntime(exported("group-norm")[1] / onnx_export.MODEL_FILE, 1, "bf16")


def test_onnx_attention_of_both_sides_stays_in_fp32(exported, tmp_path):
    _, folder = exported("group-norm")
    told = onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, tmp_path / "q.onnx")
    assert told.int8_matmuls >= 12 and told.fp32_matmuls >= 4


@pytest.mark.parametrize("shape", NETWORKS)
@pytest.mark.parametrize("name", ["torch-int8", "torch-bf16"])
def test_other_arithmetic_of_torch_is_close_and_is_another(shape, name):
    model = calm(NETWORKS[shape]())
    plain = Predictor(model, card(model)).probabilities(CLIPS)
    found = Predictor(backends.from_model(name, model), card(model)).probabilities(CLIPS)
    np.testing.assert_allclose(found, plain, rtol=0, atol=CLOSE[name])
    assert np.abs(found - plain).max() > 1e-6


def test_int8_leaves_the_network_it_was_made_from_as_it_is():
    model = tiny.model(**LOUD).eval()
    before = Predictor(model, tiny.card()).logits(CLIPS)
    backends.from_model("torch-int8", model)
    np.testing.assert_array_equal(Predictor(model, tiny.card()).logits(CLIPS), before)


def test_backends_are_asked_together_and_each_answers_for_itself(exported):
    model, folder = exported("group-norm")
    asked = {
        "torch": Predictor(model, tiny.card()),
        "onnx": Predictor(OnnxBackend(OnnxRuntime(folder / onnx_export.MODEL_FILE, 1)), tiny.card()),
        "torch-int8": Predictor(backends.from_model("torch-int8", model), tiny.card()),
    }
    together = predict_with_models(CLIPS, {name: (one, None) for name, one in asked.items()})
    for name, one in asked.items():
        np.testing.assert_array_equal(together[name][0], one.logits(CLIPS))


def released(folder: Path, exported: Any) -> tuple[str, EmotionClassifier]:
    """A sealed folder that has its graphs."""
    model, graphs = exported("group-norm")
    (folder / "scratch").mkdir()
    save_checkpoint(str(folder / "plain"), model.network, tiny.card(), scratch=folder / "scratch")
    with storage.open_checksummed_folder(str(folder / "plain")) as source:
        for name in (onnx_export.MODEL_FILE, onnx_export.INT8_MODEL_FILE):
            (source / name).write_bytes((graphs / name).read_bytes())
        storage.write_checksummed_folder(source, str(folder / "released"))
    return str(folder / "released"), model


def test_a_released_folder_is_answered_by_the_graph_it_has(exported, tmp_path, monkeypatch):
    place, model = released(tmp_path, exported)
    monkeypatch.setattr(backends, "load_local_checkpoint", None)  # neither weights are read
    monkeypatch.setattr(onnx_export, "export_onnx", None)  # nor anything exported
    for name in ("onnx", "onnx-int8", "openvino"):
        loaded = Predictor.load(place, backend=name, threads=1)
        assert loaded.version and loaded.model_id == "test/tiny" and loaded.emotions == PAPER_EMOTIONS
        found = loaded.probabilities(CLIPS)
        np.testing.assert_allclose(found, Predictor(model, tiny.card()).probabilities(CLIPS), atol=CLOSE[name])
        with pytest.raises(ConfigError, match="take backend torch"):
            loaded.logits_from_features([np.zeros((3, 16), np.float32)])


def test_a_checkpoint_without_a_graph_is_exported_when_it_is_loaded(tmp_path):
    place = tiny.checkpoint(tmp_path, **LOUD)
    before = sorted(file.name for file in Path(place).iterdir())
    loaded = Predictor.load(place, backend="onnx", threads=2)
    assert isinstance(loaded.backend, OnnxBackend) and loaded.backend.runtime.threads == 2
    np.testing.assert_allclose(loaded.logits(CLIPS), Predictor.load(place).logits(CLIPS), rtol=0, atol=1e-4)
    assert sorted(file.name for file in Path(place).iterdir()) == before


@pytest.mark.parametrize("name", ["torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16"])
def test_backends_for_cpus_are_refused_where_there_is_a_gpu(name, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(ConfigError, match=f"{name} computes on CPUs, and this process has a GPU"):
        Predictor.load(str(tmp_path), backend=name)


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_without_the_packages_it_says_which_to_install(backend, package, extra, monkeypatch, tmp_path):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else known(name))
    with pytest.raises(ConfigError, match=rf'needs {package}, .*pip install "lakd-ray\[{extra}\]"'):
        Predictor.load(str(tmp_path), backend=backend)


def test_a_graph_that_answers_otherwise_is_not_written(exported, tmp_path, monkeypatch):
    """The exporter's program is that of another network."""
    _, folder = exported("group-norm")

    class Program:
        model = type("Model", (), {"metadata_props": {}})()

        def save(self, file: Path) -> None:
            file.write_bytes((folder / onnx_export.MODEL_FILE).read_bytes())

    monkeypatch.setattr(onnx_export, "_export_program", lambda model: Program())
    with pytest.raises(CheckpointError, match=r"logits differ from torch's .* not written"):
        onnx_export.export_onnx(tiny.model(seed=1, **LOUD).eval(), tmp_path / onnx_export.MODEL_FILE)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    def refuse(model: EmotionClassifier) -> None:
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr(onnx_export, "_export_program", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write this wav2vec2 network as ONNX: .*no such operator"):
        onnx_export.export_onnx(tiny.model().eval(), tmp_path / onnx_export.MODEL_FILE)


def test_a_foreign_graph_is_refused(exported, tmp_path):
    _, folder = exported("group-norm")
    foreign = onnx.load(folder / onnx_export.MODEL_FILE)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"x")
    for runtime in RUNTIMES.values():
        with pytest.raises(CheckpointError, match="not made by this project"):
            runtime(tmp_path / "foreign.onnx")
        with pytest.raises(CheckpointError, match="cannot load"):
            runtime(tmp_path / "broken.onnx")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_base_size(tmp_path):
    """Large weights go other ways through the exporter: none may escape int8, and sums of 768 terms stay close."""
    model = build_model(
        ModelConfig(config={"model_type": "wav2vec2"}, freeze_feature_encoder=False), PAPER_EMOTIONS, seed=0
    )
    assert onnx_export.export_onnx(model.eval(), tmp_path / onnx_export.MODEL_FILE) < 1e-4
    assert (
        onnx_export.quantize_int8(
            tmp_path / onnx_export.MODEL_FILE, tmp_path / onnx_export.INT8_MODEL_FILE
        ).int8_matmuls
        >= 6 * 12
    )
