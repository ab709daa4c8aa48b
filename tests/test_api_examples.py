"""The public API: lazy imports, and the examples of docs/reference/api.md, which are run as they are."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.local_endpoint import local_endpoint

import lakd_ray
from lakd_ray import Client, Predictor, load_config, pipeline, run_stage
from lakd_ray.errors import ClipError, ConfigError, DataError
from lakd_ray.inference.options import PredictOptions

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
LOCAL, ARRAYS, CLIENT, STAGE, PIPELINE = EXAMPLES


@pytest.fixture
def folder(tmp_path, monkeypatch, model, clips) -> Path:
    """The current folder, with the files that the examples name."""
    (tmp_path / "exported").symlink_to(model)
    (tmp_path / "clip.wav").write_bytes((clips / "a.wav").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def url(model, decoders) -> Iterator[str]:
    with local_endpoint(model, decoders) as url:
        yield url


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_have_at_most_five_lines(example):
    assert len([line for line in example.splitlines() if line]) <= 5


@pytest.mark.usefixtures("folder")
def test_example_of_local_prediction(capsys, predict_file):
    names: dict[str, object] = {}
    exec(LOCAL, names)
    expected = predict_file(Path("clip.wav").read_bytes(), language="de")
    assert names["result"] == expected and expected.emotion in capsys.readouterr().out
    exec(ARRAYS, names)
    first, second = names["results"]
    assert first.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert (first.duration_s, second.duration_s, len(first.segments)) == (1.5, 1.0, 3)


@pytest.mark.usefixtures("folder")
def test_example_of_the_client(url, predict_file):
    names: dict[str, object] = {}
    exec(CLIENT.replace("http://127.0.0.1:8000", url), names)
    expected = predict_file(Path("clip.wav").read_bytes(), language="de")
    assert names["result"].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert names["result"].model_copy(update={"probabilities": expected.probabilities}) == expected


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("folder", "ray_session")
def test_example_of_a_stage():
    names: dict[str, object] = {}
    exec(STAGE, names)
    assert Path(names["config"].folder).is_dir()
    assert names["config"].folder.endswith("results/my-demo")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Replace sessions and stages; return the list that records them."""
    calls: list[str] = []

    @contextmanager
    def session(config: object) -> Iterator[None]:
        calls.append("open")
        yield
        calls.append("close")

    monkeypatch.setattr(pipeline, "experiment_session", session)
    for stage in pipeline.STAGES:
        monkeypatch.setitem(pipeline.STAGES, stage, lambda config, stage=stage: calls.append(stage))
    return calls


@pytest.mark.usefixtures("folder")
def test_a_stage_runs_in_a_session(calls):
    exec(STAGE, {})
    assert calls == ["open", "prepare", "close"]
    with pytest.raises(ConfigError, match="unknown stage 'preprare', expected one of prepare, teachers"):
        run_stage(load_config("demo"), "preprare")
    assert calls == ["open", "prepare", "close"]


@pytest.mark.usefixtures("folder")
def test_example_of_the_pipeline(calls, monkeypatch):
    monkeypatch.setattr(pipeline, "run_stages", lambda config: calls.append(f"stages of {config.name}"))
    exec(PIPELINE, {})
    assert calls == ["open", "stages of demo", "close"]


def test_sources_give_the_same_result(model, clips, predict_file):
    predictor = Predictor.load(model)
    path = clips / "a.wav"
    options = {"language": "en", "window_s": 0.5, "hop_s": 0.25, "top_k": 2}
    expected = predict_file(path.read_bytes(), **options)
    for source in (str(path), path, path.read_bytes()):
        assert predictor.predict(source, **options) == expected
    (again, other) = predictor.predict_many([path, clips / "b.flac"], **options)
    assert again.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert other.duration_s == 0.4


def test_arrays_are_resampled_and_mixed(model):
    predictor = Predictor.load(model)
    wave_T = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    mono = predictor.predict(wave_T, sample_rate=16_000)
    stereo = predictor.predict(np.stack([wave_T, wave_T], axis=1).astype(np.float32), sample_rate=16_000)
    assert stereo.probabilities == pytest.approx(mono.probabilities, abs=1e-4)
    assert predictor.predict(wave_T, sample_rate=8_000).duration_s == 2.0
    assert predictor.predict(np.clip(100 * wave_T, -1, 1), sample_rate=16_000).warnings[0].code == "clipped"


@pytest.mark.parametrize(("source", "options", "error", "message"), [
    (np.zeros(16_000, np.float32), {}, DataError, "without a sample rate: pass sample_rate"),
    (np.zeros(16_000, np.int16), {"sample_rate": 16_000}, DataError, "array of int16, .* expected floats"),
    (np.full(16_000, np.nan), {"sample_rate": 16_000}, ClipError, "not finite"),
    (np.zeros(1_000), {"sample_rate": 16_000}, ClipError, "lasts 0.062 s, expected at least 0.1 s"),
    ("absent.wav", {}, ClipError, "absent.wav"),
    (b"no audio", {}, ClipError, "cannot decode the recording"),
    (np.zeros(160_000), {"sample_rate": 16_000, "max_seconds": 5}, ClipError, "longer than the limit of 5 s"),
    (np.zeros(160_000), {"sample_rate": 16_000, "window_s": 0.25, "hop_s": 0.05, "max_seconds": 9}, ClipError, "9 s"),
    (np.zeros(960_000), {"sample_rate": 16_000, "window_s": 0.25, "hop_s": 0.05}, DataError, "1196 segments"),
    (b"", {"language": "German"}, ConfigError, "two or three letters"),
    (b"", {"hop_s": 1}, ConfigError, "hop without a window"),
])  # fmt: skip
def test_invalid_sources_and_options(model, source, options, error, message):
    with pytest.raises(error, match=message):
        Predictor.load(model).predict(source, **options)


def test_the_client_takes_paths_and_bytes(url, clips):
    with Client(url) as client:
        path = clips / "b.flac"
        assert client.predict(path) == client.predict(str(path)) == client.predict(path.read_bytes())
        with pytest.raises(ClipError, match=r"absent\.wav"):
            client.predict("absent.wav")


def loaded_after(code: str) -> set[str]:
    """Return the large packages that a new process has loaded after some code."""
    report = f"{code}\nimport sys; print(*{{'numpy', 'pyarrow', 'pydantic', 'ray', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_are_lazy():
    assert loaded_after("import lakd_ray; lakd_ray.__version__, dir(lakd_ray)") == set()
    assert loaded_after("from lakd_ray import LakdError") == set()
    assert not loaded_after("from lakd_ray import load_config; load_config('demo')") & {"ray", "torch"}
    assert not loaded_after("from lakd_ray import Client, EmotionResult") & {"ray", "torch"}
    assert "ray" not in loaded_after("from lakd_ray import Predictor")


def test_type_checkers_see_what_is_imported_at_run_time():
    tree = ast.parse(Path(lakd_ray.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == lakd_ray._MODULES
    assert sorted([*imported, "__version__"]) == sorted(lakd_ray.__all__)
    for name in lakd_ray.__all__:
        assert getattr(lakd_ray, name) is not None and name in dir(lakd_ray)
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        lakd_ray.Predicter  # noqa: B018 -- the access itself fails


def test_options_are_validated_once():
    with pytest.raises(ConfigError, match=r"window of 0\.1 s: expected 0\.25 to 60 s"):
        PredictOptions(window_s=0.1)
