"""Backends give the results of torch in fp32, up to their precision, alone and in any batch."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from support import tiny_models as tiny

from lakd_ray import devices, storage
from lakd_ray.audio import Wave
from lakd_ray.config import Backend, LanguageAwareHeadConfig, ModelConfig, ServeConfig
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.inference import backends
from lakd_ray.inference.backends import OnnxBackend
from lakd_ray.inference.predictor import Predictor, predict_with_models
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.models import EmotionClassifier, build_model, onnx_export, save_checkpoint
from lakd_ray.models.onnx_runtime import OnnxRuntime, OpenVinoRuntime

LOUD = {"initializer_range": 0.5}  # so that utterances have different logits
TOLERANCES: dict[Backend, float] = {  # of a probability
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
    """Return a function from names to networks and the folders of their graphs, each exported once."""
    cache: dict[str, tuple[EmotionClassifier, Path]] = {}

    def export(name: str) -> tuple[EmotionClassifier, Path]:
        if name not in cache:
            folder = tmp_path_factory.mktemp(name)
            model = NETWORKS[name]().eval()
            onnx_export.export_onnx(model, folder / onnx_export.MODEL_FILE)
            onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, folder / onnx_export.INT8_MODEL_FILE)
            cache[name] = model, folder
        return cache[name]

    return export


def damped(model: EmotionClassifier) -> EmotionClassifier:
    """Scale down large random weights, with which rounding errors change the results."""
    for weight in model.backbone.transformer_layers.parameters():
        weight.data /= 5
    return model.eval()


def card(model: EmotionClassifier) -> Any:
    return tiny.card(model.languages or ("en", "de"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_graph_equals_torch_alone_and_in_any_batch(exported, shape, runtime):
    if runtime == "openvino" and shape.startswith("whisper"):
        pytest.skip("OpenVINO does not support its spectrogram")
    model, folder = exported(shape)
    reference = Predictor(model, card(model))
    candidate = Predictor(OnnxBackend(RUNTIMES[runtime](folder / onnx_export.MODEL_FILE, 1)), card(model))
    languages = [None, "fi", "xx", "en"] if model.languages else None
    expected_BC, expected_BL = reference._predict_logits(CLIPS, languages)
    logits_BC, language_logits_BL = candidate._predict_logits(CLIPS, languages)
    np.testing.assert_allclose(logits_BC, expected_BC, rtol=0, atol=1e-4)
    assert (language_logits_BL is None) == (expected_BL is None) == (not model.languages)
    if language_logits_BL is not None and expected_BL is not None:
        np.testing.assert_allclose(language_logits_BL, expected_BL, rtol=0, atol=1e-4)
    for index, clip in enumerate(CLIPS):
        alone = candidate.logits([clip], None if languages is None else languages[index : index + 1])
        np.testing.assert_allclose(alone[0], logits_BC[index], rtol=0, atol=1e-4)
    assert np.abs(expected_BC - expected_BC[0]).max() > 1e-2  # the clips have different logits


@pytest.mark.parametrize("shape", SHAPES)
def test_a_quantized_graph_is_close_and_has_its_weights_in_int8(exported, shape):
    model, folder = exported(shape)
    expected = Predictor(model, card(model)).probabilities(CLIPS)
    backend = OnnxBackend(OnnxRuntime(folder / onnx_export.INT8_MODEL_FILE, 1))
    probabilities = Predictor(backend, card(model)).probabilities(CLIPS)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=TOLERANCES["onnx-int8"])
    assert np.abs(probabilities - expected).max() > 1e-6
    operators = [node.op_type for node in onnx.load(folder / onnx_export.INT8_MODEL_FILE).graph.node]
    assert (
        operators.count("MatMulInteger") >= 6 * model.backbone.num_layers
    )  # query, key, value, out and two of feed-forward


@pytest.mark.parametrize("shape", ["group-norm", pytest.param("language-aware", marks=pytest.mark.slow)])
def test_a_graph_in_bf16_is_close_but_different(shape, tmp_path):
    model = damped(NETWORKS[shape]())
    onnx_export.export_onnx(model, tmp_path / onnx_export.MODEL_FILE)
    try:
        runtime = OpenVinoRuntime(tmp_path / onnx_export.MODEL_FILE, 1, "bf16")
    except ConfigError:
        pytest.skip("this CPU has no bf16")
    probabilities = Predictor(OnnxBackend(runtime), card(model)).probabilities(CLIPS)
    expected = Predictor(model, card(model)).probabilities(CLIPS)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=TOLERANCES["openvino-bf16"])
    assert np.abs(probabilities - expected).max() > 1e-6


@pytest.mark.slow
def test_a_network_that_openvino_does_not_support_is_an_error(exported):
    with pytest.raises(CheckpointError, match=r"OpenVINO cannot load .*STFT.* use the torch backend"):
        OpenVinoRuntime(exported("whisper")[1] / onnx_export.MODEL_FILE, 1)


def test_a_cpu_without_bf16_is_an_error(exported, monkeypatch):
    class CpuWithoutBf16:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr("openvino.Core", CpuWithoutBf16)
    with pytest.raises(ConfigError, match="no bf16 arithmetic: use the backend openvino"):
        OpenVinoRuntime(exported("group-norm")[1] / onnx_export.MODEL_FILE, 1, "bf16")


def test_onnx_attention_of_both_sides_stays_in_fp32(exported, tmp_path):
    _, folder = exported("group-norm")
    counts = onnx_export.quantize_int8(folder / onnx_export.MODEL_FILE, tmp_path / "q.onnx")
    assert counts.int8_matmuls >= 12 and counts.fp32_matmuls >= 4


@pytest.mark.parametrize("shape", NETWORKS)
@pytest.mark.parametrize("name", ["torch-int8", "torch-bf16"])
def test_reduced_precision_of_torch_is_close_but_different(shape, name):
    model = damped(NETWORKS[shape]())
    expected = Predictor(model, card(model)).probabilities(CLIPS)
    probabilities = Predictor(backends.from_model(name, model), card(model)).probabilities(CLIPS)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=TOLERANCES[name])
    assert np.abs(probabilities - expected).max() > 1e-6


def test_int8_does_not_change_the_original_network():
    model = tiny.model(**LOUD).eval()
    before = Predictor(model, tiny.card()).logits(CLIPS)
    backends.from_model("torch-int8", model)
    np.testing.assert_array_equal(Predictor(model, tiny.card()).logits(CLIPS), before)


def test_several_backends_in_one_call(exported):
    model, folder = exported("group-norm")
    predictors = {
        "torch": Predictor(model, tiny.card()),
        "onnx": Predictor(OnnxBackend(OnnxRuntime(folder / onnx_export.MODEL_FILE, 1)), tiny.card()),
        "torch-int8": Predictor(backends.from_model("torch-int8", model), tiny.card()),
    }
    outputs = predict_with_models(CLIPS, {name: (predictor, None) for name, predictor in predictors.items()})
    for name, predictor in predictors.items():
        np.testing.assert_array_equal(outputs[name][0], predictor.logits(CLIPS))


def released(folder: Path, exported: Any) -> tuple[str, EmotionClassifier]:
    """Return a checkpoint folder with graphs, and its network."""
    model, graphs = exported("group-norm")
    (folder / "scratch").mkdir()
    save_checkpoint(str(folder / "plain"), model.network, tiny.card(), scratch=folder / "scratch")
    with storage.open_checksummed_folder(str(folder / "plain")) as source:
        for name in (onnx_export.MODEL_FILE, onnx_export.INT8_MODEL_FILE):
            (source / name).write_bytes((graphs / name).read_bytes())
        storage.write_checksummed_folder(source, str(folder / "released"))
    return str(folder / "released"), model


def test_an_exported_folder_uses_its_own_graph(exported, tmp_path, monkeypatch):
    folder, model = released(tmp_path, exported)
    monkeypatch.setattr(backends, "load_local_checkpoint", None)  # fails if weights are read
    monkeypatch.setattr(onnx_export, "export_onnx", None)  # fails if a graph is exported
    for name in ("onnx", "onnx-int8", "openvino"):
        loaded = Predictor.load(folder, backend=name, threads=1)
        assert loaded.version and loaded.model_id == "test/tiny" and loaded.emotions == PAPER_EMOTIONS
        probabilities = loaded.probabilities(CLIPS)
        np.testing.assert_allclose(
            probabilities, Predictor(model, tiny.card()).probabilities(CLIPS), atol=TOLERANCES[name]
        )
        reordered = Predictor.load(folder, backend=name, threads=1, emotions=PAPER_EMOTIONS[::-1])
        np.testing.assert_allclose(reordered.probabilities(CLIPS), probabilities[:, ::-1], atol=1e-6)
        with pytest.raises(CheckpointError, match=r"sadness, but lakd\.json lists 4 emotions, sadness"):
            Predictor(loaded.backend, replace(tiny.card(), emotions=PAPER_EMOTIONS[::-1]))
        with pytest.raises(ConfigError, match="use backend torch"):
            loaded.logits_from_features([np.zeros((3, 16), np.float32)])


def test_a_checkpoint_without_a_graph_is_exported_when_it_is_loaded(tmp_path):
    folder = tiny.checkpoint(tmp_path, **LOUD)
    before = sorted(file.name for file in Path(folder).iterdir())
    loaded = Predictor.load(folder, backend="onnx", threads=2)
    assert isinstance(loaded.backend, OnnxBackend) and loaded.backend.runtime.threads == 2
    np.testing.assert_allclose(loaded.logits(CLIPS), Predictor.load(folder).logits(CLIPS), rtol=0, atol=1e-4)
    assert sorted(file.name for file in Path(folder).iterdir()) == before


@pytest.mark.parametrize("name", ["torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16"])
def test_backends_for_cpus_run_there_on_a_machine_with_a_gpu(name, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "count_visible_gpus", lambda: 1)
    assert backends.resolve_device(name, "auto") == backends.resolve_device(name, "cpu") == torch.device("cpu")
    assert backends.resolve_device("torch", "auto") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match=f"{name} runs on CPUs only, and device cuda is set"):
        Predictor.load(str(tmp_path), backend=name, device="cuda")
    with pytest.raises(ValidationError, match=r"serve\.gpus reserves 0\.5 GPUs for it"):
        ServeConfig(backend=name, gpus=0.5)


def test_the_cpu_can_be_chosen_on_a_machine_with_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "count_visible_gpus", lambda: 1)
    predictor = Predictor.load(tiny.checkpoint(tmp_path), device="cpu")
    assert predictor.device == torch.device("cpu") and predictor.max_batch_seconds == 10
    assert predictor.predict_waves([np.zeros(16_000, np.float32)], [None])


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_package_is_an_error_with_its_name(backend, package, extra, monkeypatch, tmp_path):
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else known(name))
    with pytest.raises(
        ConfigError, match=rf'{package} is required but not installed: pip install "lakd-ray\[{extra}\]"'
    ):
        Predictor.load(str(tmp_path), backend=backend)


def test_a_graph_with_different_results_is_not_written(exported, tmp_path, monkeypatch):
    """The exporter is patched to return the program of a different network."""
    _, folder = exported("group-norm")

    class Program:
        model = type("Model", (), {"metadata_props": {}})()

        def save(self, file: Path) -> None:
            file.write_bytes((folder / onnx_export.MODEL_FILE).read_bytes())

    monkeypatch.setattr(onnx_export, "_export_program", lambda model: Program())
    with pytest.raises(CheckpointError, match=r"logits differ from torch's .* not written"):
        onnx_export.export_onnx(tiny.model(seed=1, **LOUD).eval(), tmp_path / onnx_export.MODEL_FILE)
    assert not list(tmp_path.iterdir())


def test_an_exporter_error_names_the_network(tmp_path, monkeypatch):
    def refuse(model: EmotionClassifier) -> None:
        raise torch.onnx.OnnxExporterError("no such operator")

    monkeypatch.setattr(onnx_export, "_export_program", refuse)
    with pytest.raises(CheckpointError, match=r"cannot export this wav2vec2 network to ONNX: .*no such operator"):
        onnx_export.export_onnx(tiny.model().eval(), tmp_path / onnx_export.MODEL_FILE)


def test_a_foreign_graph_is_rejected(exported, tmp_path):
    _, folder = exported("group-norm")
    foreign = onnx.load(folder / onnx_export.MODEL_FILE)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"x")
    for runtime in RUNTIMES.values():
        with pytest.raises(CheckpointError, match=r"has no metadata lakd\.emotions: expected a graph that"):
            runtime(tmp_path / "foreign.onnx")
        with pytest.raises(CheckpointError, match="cannot load"):
            runtime(tmp_path / "broken.onnx")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_base_size(tmp_path):
    """The exporter handles large weights differently: all must be in int8, and sums of 768 terms stay close."""
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
