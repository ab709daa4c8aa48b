"""Bulk predictions: every input has a row, finished parts stay, and nothing is mixed with anything else."""

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


def written(out: Path) -> dict[str, int]:
    """Parts, and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in (out / "predictions").glob("part-*.parquet")}


def could_not_be_read(part: Path) -> None:
    """Spoil a part: its first recording could not be read, for a reason that passes."""
    table = pq.read_table(part)
    row = {"status": "quarantined", "kind": "unreadable", "reason": "the server was away"}
    columns = {name: [value, *table[name].to_pylist()[1:]] for name, value in row.items()}
    spoilt = {name: columns.get(name, table[name]) for name in table.column_names}
    pq.write_table(pa.table(spoilt, schema=table.schema), part)


@pytest.fixture
def asked(tmp_path, clips, model) -> BulkConfig:
    return bulk.parse_settings(input=str(clips), out=str(tmp_path / "out"), model=model, part_files=2, workers=2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestRuns:
    """In one Ray session."""

    def test_every_input_has_its_answer_or_a_reason(self, asked, clips, predict_file, capsys):
        summary = bulk.run(asked)
        rows = {row["id"]: row for row in rows_of(asked.out)}
        assert list(rows) == sorted([*LENGTHS, *BAD])
        for name, row in rows.items():
            if name in BAD:
                assert row["status"] == "quarantined" and row["reason"]
                continue
            expected = predict_file((clips / name).read_bytes())
            shares = {emotion: row[f"p_{emotion}"] for emotion in predict_file.info.emotions}
            assert shares == pytest.approx(expected.probabilities, abs=1e-5) and row["emotion"] == expected.emotion
            assert row["path"] == f"{clips}/{name}" and row["version"] == predict_file.info.version
        quarantine = pq.read_table(Path(asked.out, "quarantine.parquet")).to_pylist()
        assert [row["id"] for row in quarantine] == sorted(BAD) and {row["kind"] for row in quarantine} == {
            "undecodable", "short",
        }  # fmt: skip
        assert (summary.recordings, sum(summary.predicted.values()), summary.quarantined) == (
            8, 5, {"undecodable": 2, "short": 1},
        )  # fmt: skip
        told = capsys.readouterr().out
        assert "8 recordings, 0.00 h: 5 answered (" in told and "3 quarantined (short 1, undecodable 2)" in told
        assert (record.read_record(asked.out) or {})["summary"]["quarantined"] == summary.quarantined
        assert len(written(Path(asked.out))) == 4

        self.what_is_there_stays(asked, capsys)
        self.another_model_input_or_setting_is_refused(asked)

    def what_is_there_stays(self, asked, capsys):
        out = Path(asked.out)
        before, rows = written(out), rows_of(out)
        bulk.run(asked)
        assert "already done" in capsys.readouterr().out and written(out) == before
        gone, damaged, passing, _ = names = sorted(before)
        (out / "predictions" / gone).unlink()
        (out / "predictions" / damaged).write_bytes(b"damaged")
        could_not_be_read(out / "predictions" / passing)
        (out / "predictions" / f".{gone}.1234.part").touch()  # what a killed process was writing
        before = written(out)
        bulk.run(asked.model_copy(update={"workers": 1}))
        after = written(out)
        assert [name for name in names if after[name] != before.get(name)] == names[:3]
        assert rows_of(out) == rows  # and nothing is left of the killed one's

    def another_model_input_or_setting_is_refused(self, asked):
        before = written(Path(asked.out))
        other = tiny.checkpoint(Path(asked.out).parent, seed=1)
        for change, words in (
            ({"model": other}, "model: found"),
            ({"input": f"{asked.input}/sub"}, "inputs.place: found"),
            ({"language": "en"}, 'language: found null, now "en"'),
        ):
            with pytest.raises(StageError, match=words):
                bulk.run(asked.model_copy(update=change))
        assert written(Path(asked.out)) == before

    @pytest.mark.slow
    def test_a_manifest_with_languages_ids_and_paths_that_are_not_there(self, asked, clips, tmp_path):
        manifest = tmp_path / "list.csv"
        manifest.write_text(f"id,path,language\none,{clips}/a.wav,fr\ntwo,gone.wav,\nthree,{clips}/a.wav,\n")
        bulk.run(asked.model_copy(update={"input": str(manifest), "language": "de"}))
        one, two, three = rows_of(asked.out)
        assert (one["language"], one["warnings"]) == ("fr", ["language"])
        assert (two["path"], two["kind"]) == (f"{tmp_path}/gone.wav", "missing")
        assert (three["id"], three["language"], three["warnings"]) == ("three", "de", [])

    @pytest.mark.slow
    def test_nothing_is_answered(self, asked, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.wav").touch()
        with pytest.raises(DataError, match="none of the 1 recordings could be answered"):
            bulk.run(asked.model_copy(update={"input": str(tmp_path / "in")}))
        assert len(rows_of(asked.out)) == 1

    def test_what_cannot_be_is_refused_before_anything_is_written(self, asked, tmp_path):
        for change, kind, words in (
            ({"workers": 99}, ResourceError, "the cluster has 4 CPUs and 0 GPUs, but 99 workers"),
            ({"gpu": True}, ResourceError, "and a GPU each"),
            ({"model": str(tmp_path)}, CheckpointError, "holds no finished checkpoint"),
            ({"input": str(tmp_path)}, DataError, "holds no recordings"),
        ):
            with pytest.raises(kind, match=words):
                bulk.run(asked.model_copy(update=change))
            assert not Path(asked.out).exists()

    def test_an_error_of_a_worker_is_told_as_it_is(self, asked, tmp_path):
        folder = tiny.checkpoint(tmp_path)
        storage.write_bytes(f"{folder}/model.safetensors", b"damage")
        with pytest.raises(StorageError, match=r"model.safetensors is damaged"):
            bulk.run(asked.model_copy(update={"model": folder}))


@pytest.mark.parametrize(("change", "words"), [
    ({"workers": 0}, "workers 0: Input should be greater"), ({"language": "German"}, "language 'German'"),
])  # fmt: skip
def test_settings(change, words):
    with pytest.raises(ConfigError, match=words):
        bulk.parse_settings(**{"input": "in", "out": "out", "model": "model"} | change)


def test_places_are_absolute_and_must_be_in_a_job(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    found = bulk.parse_settings(input="in", out="s3://bucket/out", model="model")
    assert (found.input, found.out, found.model) == (f"{tmp_path}/in", "s3://bucket/out", f"{tmp_path}/model")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for places in (["in", "/out", "--model", "/m"], ["/in", "out", "--model", "/m"], ["/in", "/out", "--model", "m"]):
        assert main(["predict-batch", *places]) == 2
        assert "is relative, and a Ray job runs in a temporary copy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Job:
    """`python jobs/predict_batch.py`, in a process of its own with a Ray cluster of its own."""

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
        """Everything that runs because of it."""
        name, value = self.mark.split("=")
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def job(tmp_path):
    made = Job(tmp_path)
    yield made
    for process in made.processes():
        process.kill()


def until(condition: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_driver_loses_no_finished_part_and_leaves_no_process(job, tmp_path, clips, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(160):
        shutil.copy(clips / "a.wav", folder / f"{number:03d}.wav")
    arguments = [str(folder), str(out), "--model", model, "--part-files", "2", "--workers", "2"]
    driver = job.start(*arguments)
    until(lambda: len(written(out)) >= 3 or driver.poll() is not None, 420, job.log.read_text)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, job.log.read_text()
    until(lambda: not job.processes(), 120, lambda: str([process.cmdline() for process in job.processes()]))
    before = written(out)
    assert 3 <= len(before) < 80
    assert not (out / "quarantine.parquet").exists() and (record.read_record(str(out)) or {})["finished"] is None

    job.finish(*arguments)
    after = written(out)
    assert len(after) == 80 and {name: after[name] for name in before} == before
    assert [row["id"] for row in rows_of(out)] == [f"{number:03d}.wav" for number in range(160)]
    assert f"predict: {160 - 2 * len(before)} of 160 recordings in {80 - len(before)} parts" in job.log.read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_a_bucket_into_a_bucket(job, s3, clips, model):
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
