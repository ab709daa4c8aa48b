"""Which clips go to quarantine, each for its own reason; copies; and the process that may die. No Ray."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lakd_ray.audio import SAMPLE_RATE, decode_flac
from lakd_ray.config import AudioConfig
from lakd_ray.data.deduplicate import drop_duplicates
from lakd_ray.data.quality import decode_and_validate
from lakd_ray.data.schema import QUARANTINE_KINDS
from lakd_ray.errors import ClipError

NOISE_T = 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)


def wav(wave_T: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave_T, SAMPLE_RATE, format="WAV")
    return buffer.getvalue()


def kind_of(wave_T: np.ndarray, **limits: object) -> str:
    try:
        row = decode_and_validate(
            wav(wave_T), source_name="a clip", start=None, end=None, audio_config=AudioConfig.model_validate(limits)
        )
    except ClipError as error:
        return error.kind
    assert len(decode_flac(row["audio"])) == row["num_samples"]
    return "cut" if row["cut"] else "accepted"


def test_limits():
    assert kind_of(NOISE_T) == "accepted"
    assert kind_of(NOISE_T[:1_000]) == "short"
    assert kind_of(NOISE_T, max_seconds=0.5) == "cut"
    assert kind_of(NOISE_T, max_seconds=0.5, on_too_long="quarantine") == "long"
    assert kind_of(NOISE_T, max_seconds=1.0, on_too_long="quarantine") == "accepted"
    assert kind_of(0 * NOISE_T) == "silent"
    assert kind_of(0 * NOISE_T + 0.3) == "silent"  # nothing but an offset
    assert kind_of(0.01 * NOISE_T) == "accepted"
    assert kind_of(0.01 * NOISE_T, silence_dbfs=-40) == "silent"


def test_clipping_is_forgiven_up_to_a_share():
    assert kind_of(np.clip(8 * NOISE_T, -1, 1)) == "clipped"  # a fifth of it
    assert kind_of(np.clip(6 * NOISE_T, -1, 1)) == "accepted"
    assert kind_of(np.clip(6 * NOISE_T, -1, 1), max_clipped_fraction=0.05) == "clipped"
    assert kind_of(NOISE_T / np.abs(NOISE_T).max()) == "accepted"  # normalised to full scale


def row(utterance: str, sound: str, emotion: str = "anger", speaker: str = "anna") -> dict[str, str]:
    corpus = utterance.partition("/")[0]
    return {"utterance": utterance, "audio_sha256": sound, "emotion": emotion, "speaker": f"{corpus}:{speaker}"}


def test_copies_that_agree_leave_the_first():
    kept, refused = drop_duplicates([row("b/1", "x"), row("a/2", "x"), row("a/1", "x"), row("a/3", "y")])
    assert [each["utterance"] for each in kept] == ["a/1", "a/3"]
    assert {each["utterance"] for each, _ in refused} == {"a/2", "b/1"}
    assert all("same audio as a/1, which is kept" in reason for _, reason in refused)


@pytest.mark.parametrize("other", [{"emotion": "sadness"}, {"speaker": "ben"}])
def test_copies_that_do_not_agree_all_go(other):
    kept, refused = drop_duplicates([row("a/1", "x"), row("a/2", "x", **other), row("a/3", "y")])
    assert [each["utterance"] for each in kept] == ["a/3"]
    assert {each["utterance"]: "same audio as a/2" in reason for each, reason in refused} == {"a/1": True, "a/2": False}


def test_every_kind_is_explained():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "import-corpora.md").read_text()
    assert [kind for kind in QUARANTINE_KINDS if f"| `{kind}` |" not in text] == []
