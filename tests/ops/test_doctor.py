"""Every check can fail, a slow check does not block, and a failed check prevents stages that train."""

import json
import re
import resource
import shutil
import socket
import tempfile
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from support import tiny_models as tiny

from lakd_ray import cluster, storage
from lakd_ray.cli.main import main
from lakd_ray.cluster import Node
from lakd_ray.config import Experiment, to_dict
from lakd_ray.errors import ResourceError, StorageError
from lakd_ray.ops import doctor
from lakd_ray.ops.doctor import cluster_checks, host_checks, pretrained_checks, storage_checks
from lakd_ray.ops.doctor.check import Check, CheckResult, format_table, raise_on_failure, run_checks

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's own imports

Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture(autouse=True)
def _no_cluster(request, monkeypatch):
    """Hide a Ray session that other tests of this process started from tests without the marker `ray`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr(cluster_checks.ray, "is_initialized", lambda: False)


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Return an experiment that passes all checks on this machine."""
    (tmp_path / "corpus").mkdir()
    recipe = {"model": to_dict(tiny.config()), "optim": {"epochs": 1}}
    return {
        "name": "e",
        "storage": str(tmp_path / "out"),
        "languages": ["en", "fi"],
        "corpora": [{"name": "c", "root": str(tmp_path / "corpus")}],
        "teacher": recipe,
        "student": recipe,
        "serve": {"port": 0},
        "cluster": {"object_store_mb": 80},
    }


def experiment(content: dict[str, Any], **changes: Any) -> Experiment:
    return Experiment.model_validate(content | changes)


@pytest.fixture
def file(content: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> str:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the reader's own token may be readable by others
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "experiment.yaml")


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a server that accepts connections and never responds."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:  # closed
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in connections:
        connection.close()


@pytest.fixture
def silent_bucket(silent: int, monkeypatch: pytest.MonkeyPatch) -> str:
    environment = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    environment |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent}", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setattr(storage_checks, "RESPONSE_TIMEOUT_S", 1)
    return "s3://bucket/out"


def test_a_healthy_experiment(file, tmp_path, capsys):
    assert main(["doctor", file]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {line.split("  ")[0] for line in printed[:-1]} >= {"versions", "shared memory", "disk space", "port"}
    assert len({line.index(" ok ") for line in printed if " ok " in line}) == 1
    assert printed[-1] == f"{len(printed) - 1} checks: 0 failed, 0 with a warning"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "experiment.yaml"]


def test_failures_as_table_and_as_json(file, capsys):
    broken = ["doctor", file, "--set", "corpora.0.root=/not/there", "cluster.cpus=2", "train.workers=8"]
    assert main(broken) == 2
    printed = capsys.readouterr().out
    assert "corpora            FAIL  c at /not/there" in printed
    assert re.search(r"\n +fix: correct `root`", printed)
    assert re.search(r"\n\d+ checks: 2 failed, 0 with a warning", printed)
    assert main([*broken, "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    failed = {check["name"]: check for check in result["checks"] if check["status"] == "fail"}
    assert set(failed) == {"corpora", "resources"}
    assert failed["corpora"]["expected"] == "all corpora"
    assert "need 9" in failed["resources"]["hint"]


@pytest.mark.parametrize(
    ("command", "failures"),
    [("pipeline", ["resources", "corpora", "storage"]), ("run-grid", ["corpora"]), ("train-teachers", ["storage"])],
)
def test_stages_that_train_are_not_started(file, tmp_path, monkeypatch, capsys, command, failures):
    monkeypatch.setattr(cluster, "experiment_session", lambda config: pytest.fail("Ray was started"))
    (tmp_path / "file").touch()
    broken = [f"storage={tmp_path}/file/below", "corpora.0.root=/not/there", "cluster.cpus=2", "train.workers=8"]
    assert main([command, file, "--set", *broken]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: not started: ")
    assert all(f"\n  {name}: " in message for name in failures)
    assert ("\n  corpora: " in message) == (command != "train-teachers")


@pytest.mark.parametrize(("changed", "kind"), [({}, StorageError), ({"cluster": {"cpus": 2}}, ResourceError)])
def test_only_failed_storage_checks_are_a_storage_error(content, tmp_path, changed, kind):
    (tmp_path / "file").touch()
    config = experiment(content, storage=str(tmp_path / "file" / "below"), train={"workers": 8}, **changed)
    with pytest.raises(kind, match="storage: cannot write"), doctor.checked_session(config, ["teachers"]):
        pytest.fail("it started")


def test_a_healthy_session_is_ready(content, monkeypatch):
    steps = []

    @contextmanager
    def joined(config: Experiment) -> Iterator[None]:
        steps.append("session")
        yield

    monkeypatch.setattr(cluster, "experiment_session", joined)
    with doctor.checked_session(experiment(content), ["teachers", "tune"]):
        steps.append("stage")
    assert steps == ["session", "stage"]


def test_checks_run_concurrently_and_time_out():
    forever = threading.Event()

    def hang() -> CheckResult:
        forever.wait()
        return CheckResult("a", "ok", "late")

    started = time.monotonic()
    try:
        results = run_checks([Check(name, hang, "the moon", 0.2) for name in "abc"] + [Check("d", broken_disk)])
    finally:
        forever.set()
    assert time.monotonic() - started < 2
    assert [result.status for result in results] == ["fail"] * 4
    assert results[0].found == "no response from the moon within 0.2 s"
    assert "on fire" in results[3].found


def broken_disk() -> CheckResult:
    raise OSError("on fire")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_in_a_check_fails_only_that_check():
    first, second = run_checks(
        [Check("a", lambda: CheckResult("a", "ok", str(1 / 0))), Check("b", lambda: CheckResult("b", "ok", "y"))]
    )
    assert (first.status, second.status) == ("fail", "ok")
    assert "the check raised the error above" in first.found


def test_warnings_are_listed_and_raise_nothing():
    results = [CheckResult("a", "ok", "x"), CheckResult("longer", "warn", "y", "z", "do")]
    raise_on_failure(results, ())
    assert format_table(results).splitlines() == [
        "a       ok    x",
        "longer  warn  y",
        "              expected: z",
        "              fix: do",
        "2 checks: 0 failed, 1 with a warning",
    ]


# Host


@pytest.mark.parametrize(
    ("package", "version", "status"),
    [("torch", "1.0", "fail"), ("ray", "2.60.0", "ok"), ("numpy", "1.26", "warn"), ("Python", "3.9.1", "fail")],
)
def test_versions(monkeypatch, package, version, status):
    real = host_checks.metadata.version
    monkeypatch.setattr(host_checks.metadata, "version", lambda name: version if name == package else real(name))
    if package == "Python":
        monkeypatch.setattr(host_checks.platform, "python_version", lambda: version)
    result = host_checks.check_versions()
    assert (result.status, package in result.expected) == (status, status != "ok")
    assert f"{package} {version}" in result.found


def test_a_missing_package(monkeypatch):
    def version(name: str) -> str:
        raise host_checks.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(host_checks.metadata, "version", version)
    assert host_checks.check_versions().status == "fail"
    monkeypatch.setattr(host_checks.metadata, "metadata", version)
    assert host_checks.check_versions().status == "warn"


def test_compiler(content, monkeypatch, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    on_cpu, on_gpu = experiment(content), experiment(content, train={"gpu": True})
    assert host_checks.check_compiler(on_cpu).found == "no g++ and no ninja on PATH"
    assert [host_checks.check_compiler(config).status for config in (on_cpu, on_gpu)] == ["fail", "warn"]
    (tools / "ninja").touch(0o755)
    assert host_checks.check_compiler(on_cpu).status == "fail"
    (tmp_path / "deepspeed_shm_comm").mkdir()
    (tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so").touch()
    assert host_checks.check_compiler(on_cpu).status == "warn"  # an earlier build exists
    (tools / "c++").touch(0o755)
    assert host_checks.check_compiler(on_cpu).status == "ok"


def test_gpu(content, monkeypatch):
    config = experiment(content, train={"gpu": True, "precision": "bf16"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    device = SimpleNamespace(name="Tesla", total_memory=16 * GB, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    result = host_checks.check_gpu(config)
    assert (result.status, result.found) == ("fail", "Tesla with 16.0 GB, Tesla with 16.0 GB, without bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert host_checks.check_gpu(config).status == "ok"
    device.minor = 0
    for setting in (True, "auto"):
        result = host_checks.check_gpu(experiment(content, train={"gpu": setting}))
        assert result.status == "fail"
        assert "compute capability 7.0" in result.found and "built for: sm_75, sm_80, sm_90" in result.expected
    assert host_checks.check_gpu(experiment(content, train={"gpu": False})).found == "not used (train.gpu: false)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_that_torch_can_use(content):
    result = host_checks.check_gpu(experiment(content, train={"gpu": True}, serve={"gpus": 0.5}))
    assert result.status == "ok" and torch.cuda.get_device_name() in result.found


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        (None, "13.0", "there is no NVIDIA driver"),
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug",
            "13.0",
            "the NVIDIA driver is 535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  R", "13.0", "NVIDIA driver 580.65.06"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  S", None, "built without CUDA"),
    ],
)
def test_a_gpu_that_torch_cannot_use(content, monkeypatch, tmp_path, driver, cuda, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(host_checks, "_DRIVER_FILE", tmp_path / "version")
    if driver:
        (tmp_path / "version").write_text(f"{driver}\nGCC version: 13.2.0\n")
    for changes in ({"train": {"gpu": True}}, {"train": {"gpu": False}, "serve": {"gpus": 0.5}}):
        result = host_checks.check_gpu(experiment(content, **changes))
        assert result.status == "fail" and words in result.found
    assert ("580 or later, for CUDA 13.0" in result.expected) == ("535" in words)
    result = host_checks.check_gpu(experiment(content))
    assert result.status == ("warn" if driver else "ok")
    assert driver or result.found == "none, training on CPUs (train.gpu: auto)"


@pytest.mark.parametrize(
    ("limit", "available_gb", "status"),
    [("max", 50, "ok"), (str(8 * GB), 50, "ok"), (str(GB), 50, "fail"), ("max", 2, "warn")],
)
def test_memory(content, monkeypatch, tmp_path, limit, available_gb, status):
    (tmp_path / "meminfo").write_text(f"MemTotal: {64 * 10**6} kB\nMemAvailable: {available_gb * 10**6} kB\n")
    (tmp_path / "limit").write_text(limit + "\n")
    monkeypatch.setattr(host_checks, "_MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(host_checks, "_CGROUP_LIMITS", (str(tmp_path / "limit"), str(tmp_path / "absent")))
    result = host_checks.check_memory(experiment(content))
    assert result.status == status
    assert ("5 processes" in result.expected) == (status != "ok")


@pytest.mark.parametrize(("free", "store_mb", "status"), [(GB, 800, "ok"), (GB, 2000, "warn"), (GB, 20_000, "fail")])
def test_shared_memory(content, monkeypatch, free, store_mb, status):
    monkeypatch.delenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", raising=False)
    monkeypatch.setattr(host_checks.shutil, "disk_usage", lambda path: Usage(free, 0, free))
    assert host_checks.check_shared_memory(experiment(content, cluster={"object_store_mb": store_mb})).status == status


@pytest.mark.parametrize(("limit", "status"), [(256, "fail"), (4096, "warn"), (65536, "ok"), (-1, "ok")])
def test_open_files(monkeypatch, limit, status):
    monkeypatch.setattr(host_checks.resource, "getrlimit", lambda which: (256, limit))
    assert resource.RLIM_INFINITY == -1
    assert host_checks.check_open_files().status == status


@pytest.mark.parametrize(
    ("free_gb", "inodes", "status"), [(50, 10**6, "ok"), (50, 10, "fail"), (0.1, 10**6, "fail"), (1, 10**6, "warn")]
)
def test_temporary(monkeypatch, free_gb, inodes, status):
    monkeypatch.setattr(host_checks.shutil, "disk_usage", lambda path: Usage(100 * GB, 0, round(free_gb * GB)))
    monkeypatch.setattr(host_checks.os, "statvfs", lambda path: SimpleNamespace(f_files=10**7, f_favail=inodes))
    assert host_checks.check_temporary().status == status


def test_a_temporary_folder_that_cannot_be_used(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "below"))
    (result,) = run_checks([Check("temporary folder", host_checks.check_temporary)])
    assert (result.status, str(tmp_path / "file") in result.found) == ("fail", True)


# Storage


def test_storage_check_leaves_no_files(content, tmp_path):
    assert storage_checks.check_writable(experiment(content, storage=str(tmp_path / "a" / "b"))).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_storage_with_different_content(content, monkeypatch):
    monkeypatch.setattr(storage, "read_bytes", lambda location: b"else")
    assert "different bytes" in storage_checks.check_writable(experiment(content)).found


def test_a_bucket(content, s3):
    config = experiment(content, storage=f"{s3}/doctor")
    assert storage_checks.check_writable(config).status == "ok"
    assert list(storage.list_files(f"{s3}/doctor")) == []
    results = run_checks(storage_checks.experiment_checks(config, ["prepare"], quick=True))
    assert [result.status for result in results] == ["ok", "ok"]


def test_a_bucket_that_does_not_respond(content, silent_bucket):
    config = experiment(content, storage=silent_bucket, corpora=[{"name": "c", "root": silent_bucket + "/corpus"}])
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"no response from http://127.0.0.1:\d+ in 1 attempt") as caught:
        raise_on_failure(
            run_checks(storage_checks.experiment_checks(config, ["prepare"], quick=True)), storage_checks.STORAGE_CHECKS
        )
    assert time.monotonic() - started < 5
    assert "corpora: " in str(caught.value)


def test_disk_space(content, monkeypatch):
    config = experiment(content)
    assert storage_checks.check_disk_space(config).status == "ok"
    temporary = tempfile.gettempdir()
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 10 if folder == temporary else 10**15)
    assert storage_checks.check_disk_space(config).status == "warn"
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 10)
    assert storage_checks.check_disk_space(config).status == "fail"


def test_corpora(content, monkeypatch, tmp_path):
    config = experiment(content)
    assert storage_checks.check_corpora(config).status == "ok"
    monkeypatch.setattr(storage_checks.os, "access", lambda path, mode: False)  # root can read all files
    assert "no permission to read it" in storage_checks.check_corpora(config).found
    shutil.rmtree(tmp_path / "corpus")
    assert storage_checks.check_corpora(config).status == "fail"
    storage.write_bytes(f"{config.stage_folder('prepare')}/manifest.parquet", b"")
    assert (
        storage_checks.check_corpora(config).status == "warn"
    )  # after prepare, the corpus is only compared with the data


def test_a_corpus_to_synthesize(content, monkeypatch):
    config = experiment(content, corpora=[{"name": "c", "importer": "espeak", "root": "{storage}/synthesized"}])
    monkeypatch.setattr(storage_checks.importlib.util, "find_spec", lambda name: object())
    assert storage_checks.check_corpora(config).status == "ok"
    monkeypatch.setattr(storage_checks.importlib.util, "find_spec", lambda name: None)
    assert "lakd-ray[demo]" in storage_checks.check_corpora(config).found


def test_pretrained_models_in_folders(content, tmp_path):
    folder = tmp_path / "encoder"
    config = experiment(content, student={"model": {"pretrained": str(folder)}})
    stages = ("teachers", "distill")
    assert "does not exist" in pretrained_checks.check_pretrained(config, stages, timeout_s=None).found
    folder.mkdir()
    (folder / "config.json").touch()
    assert (
        pretrained_checks.check_pretrained(config, stages, timeout_s=None).found == f"{folder} has no model.safetensors"
    )
    (folder / "model.safetensors").touch()
    assert pretrained_checks.check_pretrained(config, stages, timeout_s=None).status == "ok"
    assert pretrained_checks.check_pretrained(experiment(content), stages, timeout_s=None).status == "ok"
    external = experiment(content, distill={"external_teachers": [{"name": "b", "checkpoint": str(tmp_path / "gone")}]})
    assert pretrained_checks.check_pretrained(external, stages, timeout_s=None).status == "fail"
    assert pretrained_checks.check_pretrained(external, ["teachers"], timeout_s=None).status == "ok"


def test_pretrained_models_of_the_hub(content, monkeypatch, tmp_path, silent):
    from huggingface_hub import constants

    cache = tmp_path / "cache" / "models--some--one"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{silent}")
    config = experiment(content, teacher={"model": {"pretrained": "some/one"}})
    assert pretrained_checks.check_pretrained(config, ["teachers"], timeout_s=None).status == "warn"
    result = pretrained_checks.check_pretrained(config, ["teachers"], timeout_s=0.3)
    assert (result.status, "not available from it" in result.found) == ("fail", True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    for name in ("config.json", "model.safetensors"):
        (cache / "snapshots" / "abc" / name).touch()
    assert (
        pretrained_checks.check_pretrained(config, ["teachers"], timeout_s=None).found
        == "some/one is in the cache of the hub"
    )
    shutil.rmtree(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in pretrained_checks.check_pretrained(config, ["teachers"], timeout_s=1).found


@pytest.mark.parametrize(
    ("model", "status", "found"),
    [
        ({"pretrained": "facebook/wav2vec2-base"}, "ok", "no model was trained on dev or test speakers"),
        ({"pretrained": "openai/whisper-base"}, "warn", "not known for openai/whisper-base: tables mark"),
        ({"pretrained": "openai/whisper-base", "trained_on": []}, "ok", "no model was"),
        (
            {"pretrained": "superb/wav2vec2-base-superb-er"},
            "fail",
            "was trained on iemocap, a corpus of this experiment",
        ),
        ({"pretrained": "superb/wav2vec2-base-superb-er", "trained_on": []}, "ok", "no model was"),
    ],
)
def test_training_data_before_the_corpora_are_prepared(content, model, status, found):
    corpora = [content["corpora"][0] | {"importer": "iemocap"}]
    config = experiment(content, corpora=corpora, student={"model": model})
    result = pretrained_checks.check_training_data(config)
    assert (result.status, found in result.found) == (status, True), result


def test_training_data_of_an_external_teacher(content):
    teacher = {"name": "theirs", "checkpoint": "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3"}
    corpora = [content["corpora"][0] | {"dataset": "tess"}]
    config = experiment(content, corpora=corpora, distill={"external_teachers": [teacher]})
    assert "was trained on tess, a corpus of this experiment" in pretrained_checks.check_training_data(config).found


def test_a_port_in_use(content, silent):
    result = storage_checks.check_port(experiment(content, serve={"port": silent}))
    assert (result.status, str(silent) in result.found) == ("fail", True)
    assert storage_checks.check_port(experiment(content)).status == "ok"


def test_api_keys(content, monkeypatch, tmp_path):
    monkeypatch.delenv("LAKD_API_KEYS", raising=False)
    assert "this machine only" in storage_checks.check_api_keys(experiment(content)).found
    for settings, text in (
        ({"host": "0.0.0.0"}, "open_access"),
        ({"api_keys_file": str(tmp_path / "none")}, "cannot read"),
    ):
        result = storage_checks.check_api_keys(experiment(content, serve=settings))
        assert (result.status, text in result.found) == ("fail", True)
    monkeypatch.setenv("LAKD_API_KEYS", "a-key-of-some-length-012")
    result = storage_checks.check_api_keys(experiment(content, serve={"host": "0.0.0.0"}))
    assert (result.status, result.found) == ("ok", "1 keys")


# The cluster


@pytest.mark.parametrize(
    ("stages", "changes", "have", "words"),
    [
        (["teachers"], {"train": {"workers": 2}}, {"CPU": 2}, "has 2 CPUs, but 1 x 2 workers with 1 CPU each"),
        (["distill"], {"train": {"gpu": True}}, {"CPU": 9}, "has 0 GPUs"),
        (["tune"], {"train": {"cpus_per_worker": 4}}, {"CPU": 4}, "trials of the search with 4 CPUs each"),
        (
            ["tune"],
            {"tune": {"workers_per_trial": 2}},
            {"CPU": 2},
            "the search with 2 workers with 1 CPU each and 1 CPU",
        ),
        (["serve"], {"serve": {"replicas": 3, "cpus": 2}}, {"CPU": 5}, "serve.replicas=3"),
        (
            ["serve"],
            {"serve": {"replicas": 3, "gpus": 0.4}},
            {"CPU": 9, "GPU": 1},
            r"serve.gpus=0.4 need 2\. .*gpus: 0,",
        ),
        (["teachers"], {"train": {"gpu": True}}, {"CPU": 2, "GPU": 1}, "1 GPU each and 2 CPUs for reading data need 3"),
        (["teachers"], {"train": {"workers": 2, "reader_cpus": 2}}, {"CPU": 5}, "4 CPUs for reading data need 6"),
        (
            ["teachers"],
            {"train": {"precision": "fp16"}},
            {"CPU": 9},
            "has 0 GPUs, but .* and train.precision: bf16, or",
        ),
    ],
)
def test_insufficient_resources(content, stages, changes, have, words):
    config = experiment(content, **changes)
    with pytest.raises(ResourceError, match=words):
        cluster.check_resources(config, stages, [Node(have["CPU"], have.get("GPU", 0))])
    cluster.check_resources(config, stages, [Node(10, 2)])
    cluster.check_resources(config, ["report"], [])


def test_each_shortage_is_listed_once(content):
    config = experiment(content, train={"workers": 4, "gpu": True})
    assert len(cluster.missing_resources(config, ["teachers", "distill"], [Node(1)])) == 2


def test_local_resources_are_sufficient_by_default(content):
    config = experiment(content, train={"workers": 50})
    assert (
        cluster_checks.check_capacity(config, ["teachers"]).status == "ok"
    )  # CPUs of a local cluster are only numbers
    assert (
        cluster_checks.check_capacity(experiment(content, train={"workers": 50, "gpu": True}), ["teachers"]).status
        == "fail"
    )


def test_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster_checks.check_token("head:6379").status == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert cluster_checks.check_token("head:6379").status == "fail"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("\n")
    assert "is empty" in cluster_checks.check_token("head:6379").found
    (tmp_path / ".ray" / "auth_token").write_text("secret\n")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    result = cluster_checks.check_token("head:6379")
    assert (result.status, "secret" in str(result)) == ("warn", False)
    assert "mode 644" in result.found and "chmod 600" in result.hint
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    assert cluster_checks.check_token("head:6379").status == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert cluster_checks.check_token("head:6379").status == "fail"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert cluster_checks.check_token("head:6379").status == "ok"


def test_a_cluster_that_does_not_respond(content, monkeypatch, silent):
    monkeypatch.setattr(cluster, "experiment_session", lambda config: pytest.fail("it was joined"))
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
    for port in (silent, closed):
        config = experiment(content, cluster={"address": f"127.0.0.1:{port}", "connect_s": 0.3})
        results = {result.name: result for result in doctor.run_all_checks(config)}
        assert results["cluster"].status == "fail"
        assert results["storage"].status == "ok"  # independent of the cluster
        with pytest.raises(ResourceError, match=str(port)), doctor.checked_session(config, ["teachers"]):
            pytest.fail("it started")


def test_metrics_ports_that_can_be_read_are_a_warning():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        node = {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port}
        result = cluster_checks.check_metrics_ports([node, node | {"MetricsExportPort": 0}])
        assert (result.status, f"127.0.0.1:{port}" in result.found) == ("warn", True)
    assert cluster_checks.check_metrics_ports([node]).status == "ok"


def test_gpus_that_a_node_does_not_hide(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster_checks.check_gpu_visibility().status == "ok"
    for visible in ("0,1", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cluster_checks.check_gpu_visibility().status == "warn"


@pytest.mark.ray
def test_nodes_of_a_cluster_are_checked(content, ray_session):
    import ray

    address = ray.get_runtime_context().gcs_address
    config = experiment(content, cluster={"address": address}, train={"workers": 8})
    results = {result.name: result for result in doctor.run_all_checks(config)}
    assert [name for name, result in results.items() if result.status == "fail"] == ["resources"]
    assert results["resources"].found == "4 CPUs, 0 GPUs"
    assert results["token"].status == "ok"
    assert results["versions"].found.endswith(f"({address.rpartition(':')[0]})")
    with pytest.raises(ResourceError, match="the cluster has 4 CPUs"), doctor.checked_session(config, ["distill"]):
        pytest.fail("it started")
    assert not Path(content["storage"]).exists()


def test_results_of_nodes_are_merged():
    def on(address: str, status: Any, found: str) -> tuple[str, CheckResult]:
        return address, CheckResult("temporary folder", status, found, "space", "free some")

    merged = cluster_checks._worst(
        "temporary folder", [on("a", "ok", "x"), on("b", "fail", "full"), on("c", "fail", "full")]
    )
    assert merged == CheckResult("temporary folder", "fail", "full (b, c)", "space", "free some")
    many = cluster_checks._worst("temporary folder", [on(name, "ok", "x") for name in "abcd"])
    assert many.found == "x (4 nodes such as a)"
