"""The endpoint on a real GPU that its replicas share."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lakd_ray.audio import decode_audio
from lakd_ray.inference.predictor import Predictor
from lakd_ray.serve.client import Client

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.ray,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # Ray Serve 2.60 still passes extra keywords to pydantic's Field when it is imported
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning"),
]
CUDA_CONTEXT = 2**27  # bytes that a process takes on a GPU at least


@pytest.mark.parametrize("backend", ["torch", "torch-bf16"])
def test_two_replicas_share_a_gpu_and_predict_as_the_cpu_does(backend, endpoint, recording, tiny_checkpoint):
    free_before, _ = torch.cuda.mem_get_info()
    url, _ = endpoint(gpus=0.5, replicas=2, backend=backend)
    assert free_before - torch.cuda.mem_get_info()[0] > 2 * CUDA_CONTEXT
    clips = [recording(seconds) for seconds in (0.5, 1.0, 1.5, 4.0)] * 6
    with Client(url) as client, ThreadPoolExecutor(len(clips)) as pool:
        results = list(pool.map(client.predict, clips))
    predictor = Predictor.load(tiny_checkpoint, device="cpu")
    tolerance = 0.02 if backend == "torch-bf16" else 1e-3
    for clip, result in zip(clips, results, strict=True):
        (expected_C,) = predictor.probabilities([decode_audio(clip, source_name="a clip")])
        assert list(result.probabilities.values()) == pytest.approx(expected_C.tolist(), abs=tolerance)
