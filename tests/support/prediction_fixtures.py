"""What the tests of predictions share: recordings, a model, something that answers like an endpoint."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlparse

import numpy as np
import pytest
import soundfile

from lakd_ray.audio import decode_recording
from lakd_ray.errors import DataError
from lakd_ray.inference.predictor import Predictor
from lakd_ray.inference.recordings import LocalModel, model_info, predict_recording
from lakd_ray.inference.results import EmotionResult
from lakd_ray.serve.decoding import RequestDecoder
from support import tiny_models as tiny
from support.samples import LENGTHS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint folder of a very small model of en and de."""
    return tiny.checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings: good ones, those that cannot be answered, and what are none."""
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


Said = Callable[..., EmotionResult]


@pytest.fixture(scope="session")
def said(model: str) -> Said:
    """What the endpoint would say of a file."""
    predictor = Predictor.load(model)

    def say(content: bytes, **options: object) -> EmotionResult:
        recording = decode_recording(content, source_name="the recording")
        return asyncio.run(predict_recording(LocalModel(predictor), recording, **options))

    say.card = model_info(predictor)  # type: ignore[attr-defined] # for the endpoint below
    return say


class Endpoint(ThreadingHTTPServer):
    """Answers as the endpoint does, with the key `sesame`."""

    def __init__(self, say: Said) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        self._reply(200, self.server.say.card.model_dump_json())  # type: ignore[attr-defined] # see `said`

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        asked = {name: value if name == "language" else json.loads(value)
                 for name, value in parse_qsl(urlparse(self.path).query)}  # fmt: skip
        try:
            self._reply(200, self.server.say(content, **asked).model_dump_json())
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
        """Keep quiet."""


@pytest.fixture(scope="session")
def endpoint(said: Said) -> Iterator[str]:
    """The URL of something that answers as the endpoint does."""
    with Endpoint(said) as server:
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
