"""The endpoint on Ray Serve, in a separate process."""

import io
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import soundfile

from lakd_ray.audio import decode_audio
from lakd_ray.errors import CheckpointError, ConfigError, DataError, ResourceError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.serve.client import Client

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray Serve 2.60 still passes extra keywords to pydantic's Field when it is imported
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning"),
]


def test_endpoint_predicts_as_the_predictor_does(endpoint, recording, tiny_checkpoint):
    url, process = endpoint()
    with Client(url) as client:
        info = client.model_info()
        assert info.languages == ("en", "de")

        result = client.predict(recording(2.0), language="de")
        assert result.language == "de"
        assert result.model == info.model
        assert result.duration_s == pytest.approx(2.0)
        assert tuple(result.probabilities) == info.emotions
        assert sum(result.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert result.probabilities[result.emotion] == max(result.probabilities.values())

        for content, message in ((b"no audio", "422"), (bytes(3_000_000), "413"), (recording(11.0, rate=8_000), "413")):
            with pytest.raises(DataError, match=message):
                client.predict(content)

        clips = [recording(seconds) for seconds in (0.5, 1.0, 1.5, 4.0)] * 6
        with ThreadPoolExecutor(len(clips)) as pool:
            results = list(pool.map(client.predict, clips))
        predictor = Predictor.load(tiny_checkpoint)  # the code path of evaluation
        assert predictor.version == info.version
        for clip, concurrent in zip(clips, results, strict=True):
            (expected_C,) = predictor.probabilities([decode_audio(clip, source_name="a clip")])
            assert list(concurrent.probabilities.values()) == pytest.approx(expected_C.tolist(), abs=1e-4)

    form = httpx.post(f"{url}/v1/emotion", files={"file": ("a.flac", recording(format="FLAC"))})
    assert form.status_code == 200, form.text
    assert httpx.post(f"{url}/v1/emotion", content="{}", headers={"Content-Type": "application/json"}).json()["error"]
    assert httpx.get(f"{url}/-/healthz").text == "success"
    assert httpx.get(f"{url}/docs").status_code == 200

    process.stdin.close()
    assert process.stdout.read() == "stopped\n"
    assert process.wait(timeout=120) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_build_rejects_invalid_arguments(tmp_path):
    from lakd_ray.serve.app import build

    with pytest.raises(ConfigError, match="port"):
        build({"checkpoint": str(tmp_path), "serve": {"port": -1}})
    with pytest.raises(ConfigError, match="checkpont"):
        build({"checkpont": str(tmp_path)})
    with pytest.raises(ConfigError, match="absolute"):
        build({"checkpoint": "outputs/student"})
    with pytest.raises(CheckpointError, match="SEAL"):
        build({"checkpoint": str(tmp_path)})


def test_a_canary_has_the_classes_of_the_stable_model_in_any_order(tmp_path):
    from lakd_ray.serve.app import build

    for name, emotions in {"a": ("anger", "sadness"), "b": ("sadness", "anger"), "c": ("anger", "fear")}.items():
        metadata = {"model_id": name, "emotions": emotions, "languages": ["en"], "training": {}}
        seen = {"speakers": [], "audio": []}
        provenance = {"trained_on": seen, "selected_on": seen}
        (tmp_path / name).mkdir()
        (tmp_path / name / "lakd.json").write_text(json.dumps(metadata | {"provenance": provenance}))
        (tmp_path / name / "SEAL.json").write_text("{}")
    checkpoint, canaries = str(tmp_path / "a"), [{"canary": {"checkpoint": str(tmp_path / name)}} for name in "bc"]
    build({"checkpoint": checkpoint, "serve": canaries[0]})
    with pytest.raises(ConfigError, match="has the classes anger, fear; expected anger, sadness, in any order"):
        build({"checkpoint": checkpoint, "serve": canaries[1]})


def test_port_in_use_is_rejected():
    from lakd_ray.config import ServeConfig
    from lakd_ray.serve.port import resolve_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=str(port)):
            resolve_port(ServeConfig(port=port))
    assert resolve_port(ServeConfig(port=0)) > 0


def decoder_processes(endpoint: "subprocess.Popen[str]") -> set[int]:
    processes = psutil.Process(endpoint.pid).children(recursive=True)
    return {process.pid for process in processes if "forkserver" in " ".join(process.cmdline())}


def test_hostile_clients_cost_no_process_and_delay_no_other(endpoint, recording):
    url, process = endpoint(max_seconds=120)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(119 * 44_100), 44_100, format="FLAC")
    bomb, address = buffer.getvalue(), urlsplit(url)
    head = f"POST /v1/emotion HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: audio/flac\r\n"
    with Client(url) as client:
        client.predict(recording(1.0))
        decoders = decoder_processes(process)
        with pytest.raises(DataError, match=r"422.*overlap"):
            client.predict(bomb, window_s=60, hop_s=59 / 499)
        latencies = []
        for _ in range(20):
            with socket.create_connection((address.hostname, address.port)) as aborted:
                aborted.sendall(f"{head}Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb)
                start = time.monotonic()
                client.predict(recording(1.0))
                latencies.append(time.monotonic() - start)
        assert decoder_processes(process) == decoders
    assert max(latencies) < 10, latencies
