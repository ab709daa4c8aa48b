"""Test a second run of prepare: new clips are added, unchanged clips are not decoded again, lost clips are logged."""

import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from ray import cloudpickle
from support.fuzzing import corrupted_recordings
from test_prepare_stream import experiment, write_corpus, write_manifest

from lakd_ray import storage
from lakd_ray.config import Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare, shards
from lakd_ray.data.batch_plan import plan_training_epoch
from lakd_ray.data.schema import QUARANTINE_KINDS
from lakd_ray.errors import DataError
from lakd_ray.runs import record

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def table(config: Experiment, name: str) -> dict[str, dict[str, Any]]:
    rows = storage.read_table(f"{config.stage_folder('prepare')}/{name}.parquet").to_pylist()
    return {row["utterance"]: row for row in rows}


def modification_times(config: Experiment) -> dict[str, int]:
    """Return the modification time of each shard."""
    return {file.name: file.stat().st_mtime_ns for file in Path(config.stage_folder("prepare"), "shards").iterdir()}


def edit_manifest(config: Experiment, change: Any) -> None:
    """Apply a function to the lines of the corpus's manifest.csv."""
    file = Path(config.corpora[0].root, "manifest.csv")
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


@pytest.fixture(autouse=True)
def log_level(caplog) -> None:
    caplog.set_level(logging.INFO, logger="lakd_ray")


@pytest.fixture
def prepared(tmp_path) -> Experiment:
    write_corpus(tmp_path / "corpus")
    config = experiment(tmp_path, max_quarantined_fraction=0.1)
    prepare.prepare_corpora(config)
    return config


def test_successive_changes_of_a_corpus(prepared, caplog):
    corpus, first, before = Path(prepared.corpora[0].root), table(prepared, "manifest"), modification_times(prepared)
    digest = manifests.load_manifest(prepared).digest

    edit_manifest(
        prepared, lambda lines: [line.replace("en0-anger.wav,anger", "en0-anger.wav,sadness") for line in lines]
    )
    prepare.prepare_corpora(prepared)
    assert modification_times(prepared) == before  # a changed label does not cause decoding
    assert table(prepared, "manifest")["c/en0-anger.wav"]["emotion"] == "sadness"
    assert manifests.load_manifest(prepared).digest != digest

    soundfile.write(corpus / "new.wav", 0.1 * np.random.default_rng(5).standard_normal(16_000), 16_000)
    soundfile.write(corpus / "fi0-anger.wav", 0.1 * np.random.default_rng(6).standard_normal(8_000), 16_000)
    deleted = "en1-anger.wav"
    edit_manifest(prepared, lambda lines: [*(line for line in lines if deleted not in line), "new.wav,anger,en,en-0"])
    caplog.clear()
    prepare.prepare_corpora(prepared)
    assert "30 clips unchanged, 2 new or changed" in caplog.text
    assert "1 clips are no longer in the corpora: c/en1-anger.wav" in caplog.text
    now = table(prepared, "manifest")
    assert first.keys() - now.keys() == {f"c/{deleted}"} and now.keys() - first.keys() == {"c/new.wav"}
    assert now["c/fi0-anger.wav"]["num_samples"] == 8_000
    location = ("shard", "row_group", "row", "audio_sha256")
    for name in first.keys() & now.keys() - {"c/fi0-anger.wav"}:
        assert [now[name][column] for column in location] == [first[name][column] for column in location]
    assert before.items() <= modification_times(prepared).items()  # runs may be reading the old ones

    caplog.clear()
    prepare.prepare_corpora(prepared)
    assert "already done" in caplog.text
    shutil.rmtree(corpus)
    prepare.prepare_corpora(prepared)
    assert "not compared with corpus c at" in caplog.text
    assert table(prepared, "manifest") == now


def test_an_interrupted_run_resumes(prepared):
    folder, before, first = (
        Path(prepared.stage_folder("prepare")),
        modification_times(prepared),
        table(prepared, "manifest"),
    )
    (folder / "manifest.parquet").unlink()
    record.mark_started(str(folder), prepare.fingerprint_inputs(prepared))
    lost = min(before)
    (folder / "shards" / lost).unlink()
    prepare.prepare_corpora(prepared)
    after = modification_times(prepared)
    assert {name for name in before if after.get(name) != before[name]} == {lost}
    assert table(prepared, "manifest") == first


def test_lost_and_corrupted_shards_are_written_again(prepared, caplog):
    shard_folder = Path(prepared.stage_folder("prepare"), "shards")
    first, names = table(prepared, "manifest"), sorted(modification_times(prepared))
    assert shards.find_corrupt_shards(str(shard_folder)) == []
    (shard_folder / names[0]).unlink()
    content = bytearray((shard_folder / names[1]).read_bytes())
    content[len(content) // 2] ^= 1
    (shard_folder / names[1]).write_bytes(content)
    assert shards.find_corrupt_shards(str(shard_folder)) == [names[1]]
    (shard_folder / names[1]).write_bytes(b"PAR1")
    prepare.prepare_corpora(prepared)
    assert f"cannot read shard {names[1]}" in caplog.text
    assert shards.find_corrupt_shards(str(shard_folder)) == []
    assert table(prepared, "manifest") == first


def test_copies_are_quarantined_and_transient_errors_are_retried(prepared):
    corpus = Path(prepared.corpora[0].root)
    shutil.copy(corpus / "en0-anger.wav", corpus / "copy.wav")
    (corpus / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    edit_manifest(prepared, lambda lines: [*lines, "copy.wav,anger,en,en-0", "phone.m4a,anger,en,en-0"])
    prepare.prepare_corpora(prepared)
    rejected = table(prepared, "quarantine")
    assert rejected["c/en0-anger.wav"]["kind"] == "duplicate"  # copy.wav comes first by id
    assert "same audio as c/copy.wav, which is used instead" in rejected["c/en0-anger.wav"]["reason"]
    assert rejected["c/phone.m4a"]["kind"] in {"needs-ffmpeg", "undecodable"}
    (corpus / "copy.wav").unlink()
    edit_manifest(prepared, lambda lines: [line for line in lines if "copy.wav" not in line])
    prepare.prepare_corpora(prepared)
    assert "c/en0-anger.wav" in table(prepared, "manifest")


def write_shard_fatally(
    item: dict[str, Any], folder: str, audio: dict[str, Any], isolated: bool
) -> Iterator[dict[str, Any]]:
    """Do the same as `_write_shard`, but one recording kills the process that decodes it (runs in a Ray worker)."""
    from lakd_ray.audio import sandbox
    from lakd_ray.data import quality, shards

    call = sandbox.SandboxPool.call

    def decode_in_task(content: bytes, **arguments: Any) -> dict[str, Any]:
        if "en2-sadness" in arguments["source_name"]:
            signal.raise_signal(signal.SIGKILL)
        return quality.decode_and_validate(content, **arguments)

    def decode_in_sandbox(self: Any, function: Any, content: bytes, **arguments: Any) -> Any:
        if "en2-sadness" in arguments["source_name"]:
            return call(self, signal.raise_signal, signal.SIGKILL)
        return call(self, quality.decode_and_validate, content, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "decode_and_validate", decode_in_task)
        patch.setattr(sandbox.SandboxPool, "call", decode_in_sandbox)
        yield from shards._write_shard(item, folder, audio, isolated)


def test_a_recording_that_kills_its_decoder_is_quarantined(tmp_path, monkeypatch, caplog):
    write_corpus(tmp_path / "corpus")
    config = experiment(tmp_path, max_quarantined_fraction=0.1)
    monkeypatch.setattr(shards, "_write_shard", write_shard_fatally)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        prepare.prepare_corpora(config)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert table(config, "quarantine").keys() == {"c/en2-sadness.flac"}
    assert "it crashed the decoder" in table(config, "quarantine")["c/en2-sadness.flac"]["reason"]
    assert "tasks died while decoding" in caplog.text
    assert len(table(config, "manifest")) == 31


@pytest.mark.slow
def test_every_recording_of_a_damaged_corpus_is_accepted_or_quarantined(tmp_path):
    rows = []
    (tmp_path / "corpus").mkdir()
    for name, content in corrupted_recordings(1000, seed=11):
        (tmp_path / "corpus" / name).write_bytes(content)
        rows.append((name, "anger", "en", "one"))
    write_manifest(tmp_path / "corpus", rows)
    config = experiment(tmp_path, max_quarantined_fraction=1.0, shard_utterances=100)
    prepare.prepare_corpora(config)
    accepted, rejected = table(config, "manifest"), table(config, "quarantine")
    assert len(accepted) + len(rejected) == 1000 and not accepted.keys() & rejected.keys()
    assert {row["kind"] for row in rejected.values()} <= QUARANTINE_KINDS.keys()
    with pytest.raises(DataError, match=r"of 1000 clips cannot be used \(.*undecodable \d+"):
        prepare.prepare_corpora(experiment(tmp_path, shard_utterances=100))


def test_the_order_of_training_does_not_depend_on_file_times(prepared, tmp_path):
    other = tmp_path / "copy"
    shutil.copytree(prepared.corpora[0].root, other / "corpus", copy_function=shutil.copyfile)
    copy = experiment(other, max_quarantined_fraction=0.1)
    prepare.prepare_corpora(copy)
    manifest, copied = manifests.load_manifest(prepared), manifests.load_manifest(copy)
    assert set(modification_times(prepared)) != set(modification_times(copy)), (
        "the copy has the same shards, so the test is void"
    )
    for name in ("shard_N", "row_group_N", "row_N", "num_samples_N"):
        assert np.array_equal(getattr(manifest, name), getattr(copied, name)), name
    plans = [
        plan_training_epoch(data, data.rows("train"), prepared.batch, seed=1, epoch=0, world_size=2)
        for data in (manifest, copied)
    ]
    assert [batch.tolist() for batch in plans[0].batches(1)] == [batch.tolist() for batch in plans[1].batches(1)]
