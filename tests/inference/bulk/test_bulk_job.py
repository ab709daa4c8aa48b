"""Bulk predictions: each input has a row, complete parts are not repeated, and changed settings are rejected."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny_models as tiny
from support.samples import BAD, LENGTHS

from lakd_ray import storage
from lakd_ray.cli.main import main
from lakd_ray.errors import CheckpointError, ConfigError, DataError, ResourceError, StageError, StorageError
from lakd_ray.inference.bulk import job as bulk
from lakd_ray.inference.bulk.job import BulkConfig
from lakd_ray.runs import record

ROOT = Path(__file__).parents[3]
# Ray's own imports
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def rows_of(out: str | Path) -> list[dict]:
    files = [info.location for info in storage.list_files(storage.join(str(out), "predictions"))]
    rows = pa.concat_tables([storage.read_table(file) for file in files]).to_pylist()
    return [row | {"reason": row["reason"] and row["reason"][:20]} for row in rows]  # the rest may hold an address


def part_times(out: Path) -> dict[str, int]:
    """Return the modification time of each part, by file name."""
    return {file.name: file.stat().st_mtime_ns for file in (out / "predictions").glob("part-*.parquet")}


def mark_unreadable(part: Path) -> None:
    """Replace the first row of a part by a recording that could not be read for a transient reason."""
    table = pq.read_table(part)
    row = {"status": "quarantined", "kind": "unreadable", "reason": "the server was away"}
    columns = {name: [value, *table[name].to_pylist()[1:]] for name, value in row.items()}
    changed = {name: columns.get(name, table[name]) for name in table.column_names}
    pq.write_table(pa.table(changed, schema=table.schema), part)


@pytest.fixture
def config(tmp_path, clips, model) -> BulkConfig:
    return bulk.parse_settings(input=str(clips), out=str(tmp_path / "out"), model=model, part_files=2, workers=2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestRuns:
    """Runs that share one Ray session."""

    @pytest.fixture(autouse=True)
    def _log_level(self, caplog):
        caplog.set_level("INFO", "lakd_ray")

    def test_every_input_has_a_prediction_or_a_reason(self, config, clips, predict_file, caplog):
        summary = bulk.run(config)
        rows = {row["id"]: row for row in rows_of(config.out)}
        assert list(rows) == sorted([*LENGTHS, *BAD])
        for name, row in rows.items():
            if name in BAD:
                assert row["status"] == "quarantined" and row["reason"]
                continue
            expected = predict_file((clips / name).read_bytes())
            probabilities = {emotion: row[f"p_{emotion}"] for emotion in predict_file.info.emotions}
            assert (
                probabilities == pytest.approx(expected.probabilities, abs=1e-5) and row["emotion"] == expected.emotion
            )
            assert row["path"] == f"{clips}/{name}" and row["version"] == predict_file.info.version
        quarantine = pq.read_table(Path(config.out, "quarantine.parquet")).to_pylist()
        assert [row["id"] for row in quarantine] == sorted(BAD) and {row["kind"] for row in quarantine} == {
            "undecodable", "short",
        }  # fmt: skip
        assert (summary.recordings, sum(summary.predicted.values()), summary.quarantined) == (
            8, 5, {"undecodable": 2, "short": 1},
        )  # fmt: skip
        assert "8 recordings, 0.00 h: 5 predicted (" in caplog.text
        assert "3 quarantined (short 1, undecodable 2)" in caplog.text
        assert (record.read_record(config.out) or {})["summary"]["quarantined"] == summary.quarantined
        assert len(part_times(Path(config.out))) == 4

        self.check_complete_parts_are_reused(config, caplog)
        self.check_changes_are_rejected(config)

    def check_complete_parts_are_reused(self, config, caplog):
        out = Path(config.out)
        before, rows = part_times(out), rows_of(out)
        bulk.run(config)
        assert "already done" in caplog.text and part_times(out) == before
        deleted, damaged, transient, _ = names = sorted(before)
        (out / "predictions" / deleted).unlink()
        (out / "predictions" / damaged).write_bytes(b"damaged")
        mark_unreadable(out / "predictions" / transient)
        (out / "predictions" / f".{deleted}.1234.part").touch()  # the partial file of a killed process
        before = part_times(out)
        bulk.run(config.model_copy(update={"workers": 1}))
        after = part_times(out)
        assert [name for name in names if after[name] != before.get(name)] == names[:3]
        assert rows_of(out) == rows  # the partial file is deleted

    def check_changes_are_rejected(self, config):
        before = part_times(Path(config.out))
        other = tiny.checkpoint(Path(config.out).parent, seed=1)
        for change, message in (
            ({"model": other}, "model: found"),
            ({"input": f"{config.input}/sub"}, "inputs.location: found"),
            ({"language": "en"}, 'language: found null, now "en"'),
        ):
            with pytest.raises(StageError, match=message):
                bulk.run(config.model_copy(update=change))
        assert part_times(Path(config.out)) == before

    @pytest.mark.slow
    def test_a_manifest_with_languages_ids_and_missing_files(self, config, clips, tmp_path):
        manifest = tmp_path / "list.csv"
        manifest.write_text(f"id,path,language\none,{clips}/a.wav,fr\ntwo,gone.wav,\nthree,{clips}/a.wav,\n")
        bulk.run(config.model_copy(update={"input": str(manifest), "language": "de"}))
        one, two, three = rows_of(config.out)
        assert (one["language"], one["warnings"]) == ("fr", ["language"])
        assert (two["path"], two["kind"]) == (f"{tmp_path}/gone.wav", "missing")
        assert (three["id"], three["language"], three["warnings"]) == ("three", "de", [])

    @pytest.mark.slow
    def test_no_recording_is_valid(self, config, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.wav").touch()
        with pytest.raises(DataError, match="all 1 recordings were quarantined"):
            bulk.run(config.model_copy(update={"input": str(tmp_path / "in")}))
        assert len(rows_of(config.out)) == 1

    def test_invalid_settings_are_rejected_before_anything_is_written(self, config, tmp_path):
        for change, error, message in (
            ({"workers": 99}, ResourceError, "the cluster has 4 CPUs and 0 GPUs, but 99 workers"),
            ({"gpus": 0.5}, ResourceError, r"0 GPUs, but 2 workers with 1 CPU and 0\.5 GPU each"),
            ({"model": str(tmp_path)}, CheckpointError, "is not a complete checkpoint folder"),
            ({"input": str(tmp_path)}, DataError, "holds no recordings"),
        ):
            with pytest.raises(error, match=message):
                bulk.run(config.model_copy(update=change))
            assert not Path(config.out).exists()

    def test_an_error_of_a_worker_keeps_its_type_and_message(self, config, tmp_path):
        folder = tiny.checkpoint(tmp_path)
        storage.write_bytes(f"{folder}/model.safetensors", b"damage")
        with pytest.raises(StorageError, match=r"model.safetensors is damaged"):
            bulk.run(config.model_copy(update={"model": folder}))


@pytest.mark.parametrize(("change", "message"), [
    ({"workers": 0}, "workers 0: Input should be greater"), ({"language": "German"}, "language 'German'"),
    ({"gpus": 0.5, "backend": "onnx"}, r"backend onnx runs on CPUs only, and --gpus reserves 0\.5 GPUs"),
])  # fmt: skip
def test_invalid_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        bulk.parse_settings(**{"input": "in", "out": "out", "model": "model"} | change)


def test_paths_become_absolute_and_must_be_absolute_in_a_job(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    settings = bulk.parse_settings(input="in", out="s3://bucket/out", model="model")
    assert (settings.input, settings.out, settings.model) == (f"{tmp_path}/in", "s3://bucket/out", f"{tmp_path}/model")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for arguments in (
        ["in", "/out", "--model", "/m"],
        ["/in", "out", "--model", "/m"],
        ["/in", "/out", "--model", "m"],
    ):
        assert main(["predict-batch", *arguments]) == 2
        assert "is relative, and a Ray job runs in a temporary copy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class BulkJob:
    """`python jobs/predict_batch.py` in a separate process with its own Ray cluster."""

    def __init__(self, folder: Path) -> None:
        self.log, self.mark = folder / "log", f"LAKD_TEST={folder}"
        name, value = self.mark.split("=")
        (folder / "home").mkdir()
        self._environment = {**os.environ, name: value, "PYTHONPATH": str(ROOT), "HOME": str(folder / "home"),
                             "RAY_raylet_start_wait_time_s": "120"}  # fmt: skip
        self._environment.pop("RAY_ADDRESS", None)

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "jobs/predict_batch.py", *arguments],
                cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def finish(self, *arguments: str) -> None:
        assert self.start(*arguments).wait(timeout=420) == 0, self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        """Return the live processes of the job, which share its environment variable."""
        name, value = self.mark.split("=")
        processes = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.Error:
                continue
        return processes


@pytest.fixture
def job(tmp_path):
    job = BulkJob(tmp_path)
    yield job
    for process in job.processes():
        process.kill()


def wait_until(condition: Callable[[], bool], seconds: float, report: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, report()
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_driver_keeps_complete_parts_and_leaves_no_process(job, tmp_path, clips, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(160):
        shutil.copy(clips / "a.wav", folder / f"{number:03d}.wav")
    arguments = [str(folder), str(out), "--model", model, "--part-files", "2", "--workers", "2"]
    driver = job.start(*arguments)
    wait_until(lambda: len(part_times(out)) >= 3 or driver.poll() is not None, 420, job.log.read_text)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, job.log.read_text()
    wait_until(lambda: not job.processes(), 120, lambda: str([process.cmdline() for process in job.processes()]))
    before = part_times(out)
    assert 3 <= len(before) < 80
    assert not (out / "quarantine.parquet").exists() and (record.read_record(str(out)) or {})["finished"] is None

    job.finish(*arguments)
    after = part_times(out)
    assert len(after) == 80 and {name: after[name] for name in before} == before
    assert [row["id"] for row in rows_of(out)] == [f"{number:03d}.wav" for number in range(160)]
    assert f"predict: {160 - 2 * len(before)} of 160 recordings in {80 - len(before)} parts" in job.log.read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_input_model_and_output_in_a_bucket(job, s3, clips, model):
    for name in [*LENGTHS, *BAD]:
        storage.write_bytes(f"{s3}/in/{name}", (clips / name).read_bytes())
    for info in storage.list_files(model):
        storage.write_bytes(f"{s3}/model/{info.name}", storage.read_bytes(info.location))
    job._environment.update({name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    job.finish(f"{s3}/in", f"{s3}/out", "--model", f"{s3}/model", "--part-files", "5")
    rows = {row["id"]: row for row in rows_of(f"{s3}/out")}
    assert list(rows) == sorted([*LENGTHS, *BAD])
    assert {name for name, row in rows.items() if row["status"] == "quarantined"} == set(BAD)
    assert rows["a.wav"]["path"] == f"{s3}/in/a.wav"
    assert len(storage.read_table(f"{s3}/out/quarantine.parquet")) == 3
