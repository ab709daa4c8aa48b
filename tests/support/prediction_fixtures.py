"""Pytest plugin with shared fixtures: a folder of recordings, a tiny checkpoint, its reference results, an endpoint."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlparse

import numpy as np
import pytest
import soundfile

from lakd_ray.errors import DataError
from lakd_ray.inference.options import PredictOptions
from lakd_ray.inference.recordings import decode_and_validate
from lakd_ray.inference.results import EmotionResult
from lakd_ray.serve.decoding import RequestDecoder
from support.samples import LENGTHS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint folder of a very small model of en and de."""
    from support import tiny_models  # loads torch, which not every test session needs

    return tiny_models.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with valid recordings, recordings that are rejected, and other files."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for name, seconds in LENGTHS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.1 * random.standard_normal(round(16_000 * seconds)).clip(-3, 3), 16_000)
    (folder / "bad.wav").write_bytes(b"no audio")
    (folder / "empty.flac").touch()
    soundfile.write(folder / "sub/short.wav", np.full(100, 0.1), 16_000)
    (folder / "notes.txt").write_text("no recording")
    (folder / ".hidden.wav").write_bytes(b"")
    return folder


class ReferencePredictor:
    """Predicts one recording at a time, as the endpoint does."""

    def __init__(self, checkpoint: str) -> None:
        from lakd_ray.inference.predictor import Predictor  # loads torch

        self._predictor = Predictor.load(checkpoint)
        self.info = self._predictor.info

    def __call__(self, content: bytes, **options: Any) -> EmotionResult:
        recording = decode_and_validate(content, max_seconds=120.0)
        (result,) = self._predictor.predict_recordings([recording], [PredictOptions(**options)])
        return result


@pytest.fixture(scope="session")
def predict_file(model: str) -> ReferencePredictor:
    """Return a function from the bytes of a recording to the result of the tiny checkpoint."""
    return ReferencePredictor(model)


class FakeEndpoint(ThreadingHTTPServer):
    """A small HTTP server that responds as the endpoint does and requires the key `sesame`."""

    def __init__(self, predict_file: ReferencePredictor) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.predict_file = predict_file

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint

    def do_GET(self) -> None:
        self._reply(200, self.server.predict_file.info.model_dump_json())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        query = dict(parse_qsl(urlparse(self.path).query))
        options = {name: value if name == "language" else json.loads(value) for name, value in query.items()}
        try:
            self._reply(200, self.server.predict_file(content, **options).model_dump_json())
        except DataError as error:
            self._reply(422, json.dumps({"error": str(error)}))

    def _reply(self, status: int, body: str) -> None:
        if self.headers.get("Authorization") != "Bearer sesame":
            status, body = 401, '{"error": "a key is needed"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="session")
def endpoint(predict_file: ReferencePredictor) -> Iterator[str]:
    """Return the URL of a server that responds as the endpoint does."""
    with FakeEndpoint(predict_file) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def decoders() -> Iterator[RequestDecoder]:
    """Real decoding processes."""
    with RequestDecoder(2, timeout_s=5.0, memory_mb=512) as decoders:
        yield decoders
