"""The memory of decoded recordings is limited while the recordings of a form are decoded."""

import asyncio

import numpy as np
import pytest
from support.fake_model import FakeModel

from lakd_ray.audio import Recording
from lakd_ray.config import ServeConfig
from lakd_ray.inference.options import PredictOptions
from lakd_ray.serve.errors import RequestError
from lakd_ray.serve.prediction import PredictionService, Upload
from lakd_ray.serve.scheduling import Caller


class CountingDecoder:
    """Decodes everything to ten seconds of silence."""

    def __init__(self) -> None:
        self.calls = 0

    async def decode(self, content: bytes, max_seconds: float) -> Recording:
        self.calls += 1
        return Recording(np.zeros(160_000, np.float32), False, 0.0)


def test_decoding_stops_at_the_limit_of_a_request():
    decoder = CountingDecoder()
    service = PredictionService(ServeConfig(max_seconds=30.0, max_request_audio_s=35.0, decoder_processes=1), decoder)
    uploads = [Upload(b"a", FakeModel())] * 32
    with pytest.raises(RequestError, match="more than the limit of 35 s") as rejected:
        asyncio.run(service.predict_batch(Caller("client"), uploads, PredictOptions()))
    assert rejected.value.status == 413
    assert decoder.calls == 4
