"""`lakd predict`: an endpoint and a local model give the same results, and a bad file does not stop the others."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.samples import BAD, LENGTHS

from lakd_ray.cli.main import main
from lakd_ray.cli.predict import FileResult, expand_paths


@pytest.fixture(params=["url", "model"])
def source(request, model, monkeypatch):
    """The arguments for an endpoint or a local model."""
    if request.param == "model":
        return ["--model", model]
    monkeypatch.setenv("LAKD_API_KEY", "sesame")
    return ["--url", request.getfixturevalue("endpoint")]


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_are_the_results_of_the_endpoint(capsys, source, clips, predict_file):
    files = [str(clips / name) for name in LENGTHS]
    options = ["--language", "fr", "--window", "0.5", "--hop", "0.25", "--top-k", "2"]
    assert main(["predict", *files, *source, "--json", *options]) == 0
    for name, line in zip(files, lines(capsys), strict=True):
        expected = predict_file(Path(name).read_bytes(), language="fr", window_s=0.5, hop_s=0.25, top_k=2)
        assert line == {"file": name, **expected.model_dump(mode="json")}
        assert line["warnings"][-1]["code"] == "language" and len(line["probabilities"]) == 2


def test_a_folder_with_bad_files(capsys, source, clips):
    assert main(["predict", str(clips), *source, "--json"]) == 1
    results = {line["file"].removeprefix(f"{clips}/"): line for line in lines(capsys)}
    assert list(results) == sorted([*LENGTHS, *BAD])
    for name, seconds in LENGTHS.items():
        assert results[name]["duration_s"] == pytest.approx(seconds, abs=0.06)  # an MP3 is padded
    assert "cannot decode" in results["bad.wav"]["error"] and set(results["bad.wav"]) == {"file", "error"}


def test_the_table(capsys, source, clips, predict_file):
    bad = str(clips / "bad.wav")
    assert main(["predict", str(clips / "a.wav"), bad, "absent.wav", *source, "--language", "en", "--window", "1"]) == 1
    out, err = capsys.readouterr()
    header, row, *segments, failed, absent = out.splitlines()
    expected = predict_file((clips / "a.wav").read_bytes(), language="en")
    assert header.split() == ["file", "emotion", "language", "seconds", "notes"]
    probability = f"{expected.probabilities[expected.emotion]:.2f}"
    assert row.split() == [str(clips / "a.wav"), expected.emotion, probability, "en", "1.50"]
    assert header.index("emotion") == row.index(expected.emotion)
    assert [line.split()[:3] for line in segments] == [["0.00", "-", "1.00"], ["0.50", "-", "1.50"]]
    assert failed.startswith(f"{bad}") and "error: " in failed
    assert absent.split(maxsplit=1) == ["absent.wav", "error: there is no such file or folder"]
    assert err.splitlines()[-1] == "2 of 3 files have no prediction"


def test_too_long_too_short_and_too_many_segments(capsys, clips, model):
    files = [str(clips / name) for name in ("a.wav", "sub/e.mp3", "sub/short.wav")]
    assert main(["predict", *files, "--model", model, "--json", "--max-seconds", "2"]) == 1
    good, long, short = lines(capsys)
    assert good["emotion"]
    assert long["error"] == "the recording is longer than the limit of 2 s"
    assert short["error"] == "the recording lasts 0.006 s, expected at least 0.1 s"


@pytest.mark.parametrize(("pattern", "expected"), [
    ("*", [*LENGTHS, *BAD]), ("*.wav", ["a.wav", "bad.wav"]), ("**/*.wav", ["a.wav", "bad.wav", "sub/deep/d.wav",
    "sub/short.wav"]), ("sub/[de]*", ["sub/deep/d.wav", "sub/e.mp3"]), ("sub", [name for name in [*LENGTHS, *BAD]
    if name.startswith("sub/")]), ("notes.txt", ["notes.txt"]), ("**", [*LENGTHS, *BAD]),
])  # fmt: skip
def test_paths_and_patterns_are_expanded(clips, pattern, expected):
    assert sorted(expand_paths(str(clips / pattern))) == sorted(str(clips / name) for name in expected)


@pytest.mark.parametrize("name", ["*.aiff", "absent", "s3:/x", "empty"])
def test_a_path_without_recordings_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (result,) = expand_paths(str(tmp_path / name))
    assert isinstance(result, FileResult) and result.prediction is None and result.error


def test_a_file_that_is_given_twice_is_predicted_once(capsys, clips, model):
    assert main(["predict", str(clips / "a.wav"), str(clips / "a*"), "--model", model, "--json"]) == 0
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["{clips}/a.wav", "--model", "{clips}"], "SEAL.json"),
    (["{clips}/a.wav", "--url", "http://127.0.0.1:{port}"], "check the URL and that the endpoint is running"),
    (["{clips}/a.wav", "--url", "{endpoint}"], "requires an API key (401: a key is needed); set LAKD_API_KEY"),
    (["{clips}/absent.wav", "--model", "{clips}"], "found no recordings:\n  {clips}/absent.wav: there is no such"),
    (["{clips}/a.wav", "--model", "{clips}", "--language", "english"], "expected a code of two or three letters"),
    (["{clips}/a.wav", "--model", "{clips}", "--hop", "1"], "a hop without a window"),
    (["{clips}/a.wav", "--model", "{clips}", "--window", "0.1"], "expected 0.25 to 60 s"),
    (["{clips}/a.wav", "--model", "{clips}", "--top-k", "0"], "expected 1 or more"),
])  # fmt: skip
def test_errors_before_the_first_prediction(capsys, monkeypatch, clips, endpoint, arguments, words):
    monkeypatch.delenv("LAKD_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        names = {"clips": clips, "endpoint": endpoint, "port": probe.getsockname()[1]}
    assert main(["predict", *[argument.format(**names) for argument in arguments]]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and words.format(**names) in err
    assert out == ""


@pytest.mark.parametrize("arguments", [["a.wav"], ["a.wav", "--url", "u", "--model", "m"], ["--model", "m"]])
def test_usage_errors(capsys, arguments):
    assert main(["predict", *arguments]) == 2
    assert capsys.readouterr().err.startswith("Usage: lakd predict ")


@pytest.mark.parametrize(("absent", "option"), [("ray", "model"), ("ray torch transformers", "url")])
def test_heavy_packages_are_loaded_only_if_needed(clips, model, endpoint, absent, option):
    arguments = ["predict", str(clips / "a.wav"), "--json", f"--{option}", {"model": model, "url": endpoint}[option]]
    code = (
        "import sys; from lakd_ray.cli.main import main; status = main(sys.argv[2:]); "
        "sys.exit(status or str(set(sys.argv[1].split()) & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, absent, *arguments],
        env={**os.environ, "LAKD_API_KEY": "sesame"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (1, ""), done.stderr  # sys.exit("") ends with 1
    assert json.loads(done.stdout)["emotion"]


def test_a_reader_that_ends_early_is_no_error(clips, model):
    code = "import sys; from lakd_ray.cli.main import main; sys.exit(main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, "predict", str(clips), "--model", model],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=120)) == ("", 1)
