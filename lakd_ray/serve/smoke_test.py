"""A smoke test of the endpoint: serve the best student and query it with test recordings."""

import logging
from typing import Any

from lakd_ray.audio import decode_audio, encode_flac, sources, to_int16
from lakd_ray.cluster import cluster_address
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.runs.graph import RunGraph
from lakd_ray.runs.state import find_best_student_checkpoint
from lakd_ray.serve.auth import find_own_key
from lakd_ray.serve.client import Client

logger = logging.getLogger(__name__)


def smoke_test_endpoint(graph: RunGraph) -> None:
    """Serve the best student, query it with held-out clips over HTTP, log the predictions, and stop the endpoint."""
    from lakd_ray.serve import deploy  # Ray Serve takes seconds to load

    config = graph.config
    checkpoint = find_best_student_checkpoint(graph)
    url = deploy.start(config, checkpoint)
    try:
        logger.info(f"serve: {checkpoint}\n  at {url}/v1/emotion")
        with Client(url, api_key=find_own_key(config.serve)) as endpoint:
            correct, total = _query_test_clips(config, endpoint)
        logger.info(
            f"serve: {correct} of {total} held-out clips right; endpoint stopped (`lakd serve` starts a permanent one)"
        )
    finally:
        deploy.stop(before_cluster_shutdown=cluster_address(config.cluster) is None)


def _query_test_clips(config: Experiment, endpoint: Client) -> tuple[int, int]:
    """Query the endpoint with one test recording of every language and emotion; return the correct and total counts."""
    manifest = manifests.load_manifest(config)
    correct = total = 0
    for language in config.languages:
        clips = manifest.table.take(manifest.rows("test", [language])).to_pylist()
        ordered = sorted(clips, key=lambda clip: str(clip["audio_sha256"]))
        first = {clip["emotion"]: clip for clip in reversed(ordered)}
        for clip in (first[emotion] for emotion in config.emotions if emotion in first):
            result = endpoint.predict(_read_clip(clip), language)
            correct, total = correct + (result.emotion == clip["emotion"]), total + 1
            probability = result.probabilities[result.emotion]
            logger.info(
                f"  {clip['utterance']:<34} truth {clip['emotion']:<10} answer {result.emotion:<10} ({probability:.2f})"
            )
    return correct, total


def _read_clip(clip: dict[str, Any]) -> bytes:
    """Read a clip from its corpus; of a longer recording, the part that is the clip."""
    content = sources.read_source(clip["source"])
    if clip["start"] is None and clip["end"] is None:
        return content
    wave_T = decode_audio(content, source_name=clip["source"], start=clip["start"], end=clip["end"])
    return encode_flac(to_int16(wave_T))
