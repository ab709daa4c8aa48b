"""Test preparing a corpus in several formats with Ray Data, and streaming it as planned batches."""

import csv
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE, decode_audio, decode_flac, encode_flac, to_float, to_int16
from lakd_ray.cluster import Bundle, all_nodes, reserved
from lakd_ray.config import ClusterConfig, Experiment
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.data import reader as streams
from lakd_ray.data.batch_plan import ReadGroup, plan_evaluation_epoch, plan_training_epoch, skip_batches
from lakd_ray.data.manifest import MANIFEST_FILE, Manifest
from lakd_ray.data.reader import stream_batches
from lakd_ray.errors import DataError, StageError, StorageError
from lakd_ray.labels import PAPER_EMOTIONS
from lakd_ray.runs import record

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# sampling rate, channels, file extension, libsndfile subtype; all recordings of a speaker have the same
FORMATS = ((16_000, 1, "wav", "PCM_16"), (22_050, 2, "wav", "PCM_24"), (48_000, 1, "flac", "PCM_16"))
FORMATS += ((16_000, 2, "flac", "PCM_16"),)


def write_corpus(folder: Path) -> int:
    """Write 2 languages x 4 speakers x 4 emotions of different lengths and manifest.csv; return the number of clips."""
    random = np.random.default_rng(0)
    rows = []
    for language in ("en", "fi"):
        for speaker, (rate, channels, extension, subtype) in enumerate(FORMATS):
            for emotion in PAPER_EMOTIONS:
                name = f"{language}{speaker}-{emotion}.{extension}"
                samples = round(rate * random.uniform(0.2, 0.9))
                noise = (0.1 * random.standard_normal((samples, channels))).clip(-1, 1)
                folder.mkdir(exist_ok=True)
                soundfile.write(folder / name, noise, rate, subtype=subtype)
                rows.append((name, emotion, language, f"{language}-{speaker}"))
    write_manifest(folder, rows)
    return len(rows)


def write_manifest(folder: Path, rows: list[tuple[str, ...]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "emotion", "language", "speaker"), *rows])


def experiment(folder: Path, **audio: Any) -> Experiment:
    recipe = {"model": {"pretrained": "none"}}
    return Experiment.model_validate(
        {
            "name": "t",
            "storage": str(folder / "outputs"),
            "languages": ["en", "fi"],
            "corpora": [{"name": "c", "root": str(folder / "corpus"), "split": {"folds": 2, "dev_speakers": 1}}],
            "audio": {"row_group_utterances": 3, "shard_utterances": 10, **audio},
            "teacher": recipe,
            "student": recipe,
            "batch": {"max_padded_seconds": 2, "max_utterances": 3, "shuffle_row_groups": 2},
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, ray_session) -> tuple[Experiment, int]:
    folder = tmp_path_factory.mktemp("prepared")
    num_clips = write_corpus(folder / "corpus")
    config = experiment(folder)
    assert prepare.prepare_corpora(config) == config.stage_folder("prepare")
    return config, num_clips


@pytest.fixture
def manifest(prepared) -> Manifest:
    return manifests.load_manifest(prepared[0])


def shard_bytes(config: Experiment) -> dict[str, bytes]:
    folder = config.stage_folder("prepare")
    return {info.location: storage.read_bytes(info.location) for info in storage.list_files(folder)}


def test_every_clip_is_in_a_shard(prepared, manifest):
    config, num_clips = prepared
    table = manifest.table
    assert table.num_rows == num_clips
    assert storage.read_table(f"{config.stage_folder('prepare')}/{prepare.QUARANTINE_FILE}").num_rows == 0
    assert manifest.ids == sorted(manifest.ids)
    assert len(manifest.shards) == 4  # 16 utterances of a language in shards of ten
    assert set(manifest.splits_N) == {"train", "dev", "test"}
    assert {row["speaker"] for row in table.to_pylist()} == {f"c:{code}-{n}" for code in ("en", "fi") for n in range(4)}
    for row in table.to_pylist():
        info = soundfile.info(row["source"])
        assert row["num_samples"] == -(-info.frames * SAMPLE_RATE // info.samplerate)
        assert row["row"] < config.audio.row_group_utterances


def test_shards_hold_the_audio_and_its_hash(manifest):
    for row, shard in zip(manifest.table.to_pylist(), manifest.shard_N, strict=True):
        stored = storage.read_table(manifest.shards[shard]).slice(3 * row["row_group"] + row["row"], 1).to_pylist()[0]
        assert stored["utterance"] == row["utterance"]
        samples = decode_flac(stored["audio"])
        assert hashlib.sha256(samples.tobytes()).hexdigest() == row["audio_sha256"]


def test_a_finished_stage_is_not_run_again(prepared, caplog):
    caplog.set_level(logging.INFO, logger="lakd_ray")
    config, _ = prepared
    before = shard_bytes(config)
    assert prepare.prepare_corpora(config) == config.stage_folder("prepare")
    assert "already done" in caplog.text
    assert shard_bytes(config) == before


def test_a_different_configuration_is_rejected(prepared):
    config, _ = prepared
    before = shard_bytes(config)
    other = config.model_copy(update={"audio": config.audio.model_copy(update={"max_seconds": 5.0})})
    with pytest.raises(StageError, match=r"audio\.max_seconds: found 20\.0, now 5\.0"):
        prepare.prepare_corpora(other)
    assert shard_bytes(config) == before
    assert prepare.prepare_corpora(
        config.model_copy(update={"fold": 1, "seed": 3})
    )  # nothing that the shards depend on


def check_stream(manifest: Manifest, groups: list[ReadGroup]) -> int:
    """Check that batches arrive as planned with the audio of their sources; return the number of batches."""
    planned = [(group, batch) for group in groups for batch in group.batches]
    sources = manifest.table["source"].to_pylist()
    for (group, rows), batch in zip(planned, stream_batches(manifest, groups, num_cpus=2), strict=True):
        assert batch.rows.tolist() == rows.tolist()
        assert (batch.epoch, batch.split) == (group.epoch, group.split)
        for row, wave in zip(rows, batch.signals, strict=True):
            expected = decode_audio(Path(sources[row]).read_bytes(), source_name="source")
            assert wave.dtype == np.float32
            assert wave.shape == expected.shape
            # Resampling in a different process may sum in a different order, and round to the next 16-bit step.
            assert np.abs(wave - expected).max() <= (0 if soundfile.info(sources[row]).samplerate == 16_000 else 2**-15)
    return len(planned)


def test_an_execution_takes_the_batches_that_fit_the_budget(prepared, manifest):
    epoch = plan_training_epoch(manifest, manifest.rows("train"), prepared[0].batch, seed=3, epoch=0, world_size=1)
    groups = list(epoch.read_groups[0])
    assert len(groups) > 2

    def size(*read_groups: ReadGroup) -> int:
        return 2 * sum(int(manifest.num_samples_N[rows].sum()) for group in read_groups for rows in group.batches)

    planned = [rows.tolist() for group in groups for rows in group.batches]
    source = streams.ShardSource(manifest.shards)
    for budget in (0, size(groups[0]) - 1, max(map(size, groups)), size(*groups)):
        chunks = list(streams._chunk_read_groups(manifest, groups, source, budget))
        assert [rows.tolist() for chunk in chunks for group in chunk for rows in group.batches] == planned
        for chunk in chunks:
            assert size(*chunk) <= budget or [len(group.batches) for group in chunk] == [1]
        if budget >= max(map(size, groups)):
            assert [id(group) for chunk in chunks for group in chunk] == [id(group) for group in groups]
    assert len(chunks) == 1
    features = streams.ShardSource(manifest.shards, feature_dim=512)  # 3.2 times as many bytes as the audio
    assert len(list(streams._chunk_read_groups(manifest, groups, features, size(*groups)))) > 1


def test_the_order_does_not_depend_on_the_executions(prepared, manifest, monkeypatch):
    monkeypatch.setattr(streams, "_execution_budget", lambda readers: 0)
    epoch = plan_training_epoch(manifest, manifest.rows("train"), prepared[0].batch, seed=3, epoch=0, world_size=1)
    assert check_stream(manifest, list(epoch.read_groups[0])[:4]) == 4


def test_an_empty_plan_reads_nothing(manifest):
    assert list(stream_batches(manifest, [])) == []


def test_stream_yields_the_plan(prepared, manifest):
    batch = prepared[0].batch
    training = [
        plan_training_epoch(manifest, manifest.rows("train"), batch, seed=3, epoch=number, world_size=1)
        for number in range(2)
    ]
    dev = plan_evaluation_epoch(manifest, manifest.rows("dev"), batch, epoch=1)
    groups = [group for epoch in (training[0], skip_batches(training[1], 2), dev) for group in epoch.read_groups[0]]
    assert {(group.epoch, group.split) for group in groups} == {(0, "train"), (1, "train"), (1, "dev")}
    assert check_stream(manifest, groups) > 5
    assert list(stream_batches(manifest, [])) == []


def test_reading_needs_no_cpu_beyond_the_reservations_of_its_consumers(prepared, manifest):
    epoch = plan_evaluation_epoch(manifest, manifest.rows("dev"), prepared[0].batch, epoch=0)
    cpus = sum(node.cpus for node in all_nodes())
    with ThreadPoolExecutor(1) as pool, reserved("all CPUs", Bundle(cpus), 1, ClusterConfig(wait_s=60)):
        assert pool.submit(check_stream, manifest, list(epoch.read_groups[0])).result(timeout=60) > 0


def test_a_missing_shard_raises(prepared, manifest, tmp_path):
    moved = Manifest(**{**vars(manifest), "shards": tuple(str(tmp_path / "absent") for _ in manifest.shards)})
    groups = plan_evaluation_epoch(manifest, manifest.rows("dev"), prepared[0].batch).read_groups[0]
    with pytest.raises(StorageError, match="absent"):
        list(stream_batches(moved, list(groups)))


def test_unusable_clips_are_quarantined(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lakd_ray")
    num_clips = write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "en0-anger.wav").write_bytes(b"RIFF, but no audio follows")
    soundfile.write(tmp_path / "corpus" / "fi0-anger.wav", np.zeros(160), 16_000)
    (tmp_path / "corpus" / "fi3-anger.flac").unlink()
    config = experiment(tmp_path, max_quarantined_fraction=0.1)
    folder = prepare.prepare_corpora(config)
    quarantine = {row["utterance"]: row for row in storage.read_table(f"{folder}/quarantine.parquet").to_pylist()}
    assert quarantine.keys() == {"c/en0-anger.wav", "c/fi0-anger.wav", "c/fi3-anger.flac"}
    kinds = {name: row["kind"] for name, row in quarantine.items()}
    assert kinds == {"c/en0-anger.wav": "undecodable", "c/fi0-anger.wav": "short", "c/fi3-anger.flac": "missing"}
    assert "cannot decode" in quarantine["c/en0-anger.wav"]["reason"]
    assert "0.010 s long, shorter than audio.min_seconds=0.1" in quarantine["c/fi0-anger.wav"]["reason"]
    assert "there is no file fi3-anger.flac" in quarantine["c/fi3-anger.flac"]["reason"]
    accepted = storage.read_table(f"{folder}/{MANIFEST_FILE}")
    assert accepted.num_rows + len(quarantine) == num_clips
    assert not quarantine.keys() & set(accepted["utterance"].to_pylist())
    assert "3 quarantined (missing 1, short 1, undecodable 1)" in caplog.text
    manifest = manifests.load_manifest(config)
    check_stream(manifest, list(plan_evaluation_epoch(manifest, manifest.rows("train"), config.batch).read_groups[0]))


def test_too_many_unusable_clips_raise(tmp_path):
    write_corpus(tmp_path / "corpus")
    broken = tmp_path / "corpus" / "en0-anger.wav"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    config = experiment(tmp_path)
    with pytest.raises(DataError, match=r"1 of 32 clips cannot be used.*max_quarantined_fraction=0\.01") as caught:
        prepare.prepare_corpora(config)
    assert str(broken) in str(caught.value)
    folder = config.stage_folder("prepare")
    assert not record.is_done(folder, prepare.fingerprint_inputs(config))
    assert not storage.exists(f"{folder}/{MANIFEST_FILE}")
    broken.write_bytes(content)
    prepare.prepare_corpora(config)
    assert storage.read_table(f"{folder}/{MANIFEST_FILE}").num_rows == 32


def test_16_bit_samples_are_preserved_exactly():
    samples = np.concatenate([np.arange(-32768, 32768), [32767, -32768, 0]]).astype(np.int16)
    assert np.array_equal(to_int16(to_float(samples)), samples)
    assert np.array_equal(decode_flac(encode_flac(samples)), samples)
    assert np.array_equal(decode_audio(encode_flac(samples), source_name="samples"), to_float(samples))
