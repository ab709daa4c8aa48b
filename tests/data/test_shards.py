"""Test the task that writes a shard, without Ray."""

import json
from pathlib import Path

import numpy as np
import soundfile

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import AudioConfig, to_dict
from lakd_ray.corpora.items import Clip
from lakd_ray.data import shards
from lakd_ray.data.shards import load_clip_index

NUM_CLIPS = 20


def write_clips(folder: Path) -> list[dict[str, object]]:
    """Write recordings, of which one is too short, and return the clips of a task."""
    folder.mkdir()
    random = np.random.default_rng(0)
    entries: list[dict[str, object]] = []
    for number in range(NUM_CLIPS):
        file = folder / f"{number:02}.wav"
        soundfile.write(file, 0.1 * random.standard_normal(100 if number == 3 else 4_000), SAMPLE_RATE)
        clip = Clip(id=file.name, emotion="anger", language="en", speaker="anna", source=str(file))
        entries.append({"key": f"key-{number}", "corpus": "c", "clip": vars(clip)})
    return entries


def test_a_task_reports_progress_before_it_ends(tmp_path: Path):
    task = {"name": "c-en", "clips": write_clips(tmp_path / "corpus")}
    folder, audio = str(tmp_path / "shards"), AudioConfig()
    rows = list(shards._write_shard({"item": json.dumps(task)}, folder, to_dict(audio), isolated=False))
    assert [row["num_decoded"] for row in rows] == [8, 16, NUM_CLIPS]
    assert {row["task"] for row in rows} == {"key-0"} and not any(row["error"] for row in rows)
    assert [row["results"] for row in rows[:-1]] == ["{}", "{}"]
    results = json.loads(rows[-1]["results"])
    assert results.keys() == {f"key-{number}" for number in range(NUM_CLIPS)}
    assert results["key-3"]["kind"] == "short"
    assert load_clip_index(folder, audio) == results


def test_a_task_that_cannot_write_reports_the_error(tmp_path: Path):
    (tmp_path / "shards").write_text("not a folder")
    task = {"name": "c-en", "clips": write_clips(tmp_path / "corpus")}
    item = {"item": json.dumps(task)}
    *_, last = shards._write_shard(item, str(tmp_path / "shards"), to_dict(AudioConfig()), isolated=False)
    assert last["error"] and last["results"] == "{}"
