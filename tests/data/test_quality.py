"""Test the reasons for quarantine and the handling of copies, without Ray."""

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


def test_each_limit_quarantines_with_its_kind():
    assert kind_of(NOISE_T) == "accepted"
    assert kind_of(NOISE_T[:1_000]) == "short"
    assert kind_of(NOISE_T, max_seconds=0.5) == "cut"
    assert kind_of(NOISE_T, max_seconds=0.5, on_too_long="quarantine") == "long"
    assert kind_of(NOISE_T, max_seconds=1.0, on_too_long="quarantine") == "accepted"
    assert kind_of(0 * NOISE_T) == "silent"
    assert kind_of(0 * NOISE_T + 0.3) == "silent"  # only an offset
    assert kind_of(0.01 * NOISE_T) == "accepted"
    assert kind_of(0.01 * NOISE_T, silence_dbfs=-40) == "silent"


def test_clipping_is_allowed_up_to_a_fraction():
    assert kind_of(np.clip(8 * NOISE_T, -1, 1)) == "clipped"  # a fifth of the samples
    assert kind_of(np.clip(6 * NOISE_T, -1, 1)) == "accepted"
    assert kind_of(np.clip(6 * NOISE_T, -1, 1), max_clipped_fraction=0.05) == "clipped"
    assert kind_of(NOISE_T / np.abs(NOISE_T).max()) == "accepted"  # normalized to full scale


def row(utterance: str, audio: str, emotion: str = "anger", speaker: str = "anna") -> dict[str, str]:
    corpus = utterance.partition("/")[0]
    return {"utterance": utterance, "audio_sha256": audio, "emotion": emotion, "speaker": f"{corpus}:{speaker}"}


def test_of_copies_that_agree_the_first_remains():
    remaining, rejected = drop_duplicates([row("b/1", "x"), row("a/2", "x"), row("a/1", "x"), row("a/3", "y")])
    assert [entry["utterance"] for entry in remaining] == ["a/1", "a/3"]
    assert {entry["utterance"] for entry, _ in rejected} == {"a/2", "b/1"}
    assert all("same audio as a/1, which is used instead" in reason for _, reason in rejected)


@pytest.mark.parametrize("other", [{"emotion": "sadness"}, {"speaker": "ben"}])
def test_copies_that_disagree_are_all_rejected(other):
    remaining, rejected = drop_duplicates([row("a/1", "x"), row("a/2", "x", **other), row("a/3", "y")])
    assert [entry["utterance"] for entry in remaining] == ["a/3"]
    assert {entry["utterance"]: "same audio as a/2" in reason for entry, reason in rejected} == {
        "a/1": True,
        "a/2": False,
    }


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "import-corpora.md").read_text()
    assert [kind for kind in QUARANTINE_KINDS if f"| `{kind}` |" not in text] == []
