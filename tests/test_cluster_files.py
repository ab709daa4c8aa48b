"""The files in cluster/ and jobs/ agree with each other, the package and the pinned versions; nothing is started."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
import yaml
from support import tiny_models

from lakd_ray import storage
from lakd_ray.cli.main import app
from lakd_ray.config import DistillLossConfig, Weighting, load_config, to_documented_yaml, with_variant
from lakd_ray.errors import CheckpointError, ConfigError
from lakd_ray.tune.study import PAPER_LOSS

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
EXPERIMENTS = sorted((ROOT / "lakd_ray/experiments").glob("*.yaml"))
TEXTS = sorted(file for file in CLUSTER.rglob("*") if file.is_file())


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def parsed(name: str) -> Any:
    return yaml.safe_load(read(name))


def pinned(package: str) -> str:
    return re.search(rf"^{package}==(\S+)", read("constraints.txt"), re.MULTILINE)[1]


def job() -> dict[str, Any]:
    return parsed("cluster/kuberay/rayjob.yaml")["spec"]


def service() -> dict[str, Any]:
    return parsed("cluster/kuberay/rayservice.yaml")["spec"]


def applications() -> list[dict[str, Any]]:
    on_kubernetes = yaml.safe_load(service()["serveConfigV2"])
    return [*parsed("cluster/serve.yaml")["applications"], *on_kubernetes["applications"]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_shell_scripts_parse_and_stop_at_errors(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()
    assert script.stat().st_mode & 0o100, "not executable"


def test_versions_are_those_of_the_package():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    ray = pinned("ray")
    assert any(re.fullmatch(rf"ray\[.*\]=={re.escape(ray)}", need) for need in project["dependencies"])
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)$", read("cluster/Dockerfile"), re.MULTILINE)
    assert base is not None and base[1] == ray
    assert f">={base[2]}.{base[3]}" in project["requires-python"]
    assert job()["rayClusterSpec"]["rayVersion"] == service()["rayClusterConfig"]["rayVersion"] == ray
    images = set(re.findall(r"REGISTRY/lakd-ray:(\S+)", "\n".join(file.read_text() for file in TEXTS)))
    assert images == {project["version"]}


def test_no_address_of_a_registry_is_committed():
    for name in ("constraints.txt", "pyproject.toml"):
        assert not re.search(r"https?://|index-url|find-links", read(name)), name


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_paths_in_the_files_exist(file):
    for path in re.findall(r"\b(?:jobs|cluster|lakd_ray|docs)/[\w./-]*\w\.(?:py|yaml|sh|md)\b", file.read_text()):
        if "NAME" not in path:
            assert (ROOT / path).is_file(), f"{file.name} names {path}"


def test_dockerfile_copies_existing_files_and_those_of_the_build():
    copied = {
        name
        for line in read("cluster/Dockerfile").splitlines()
        if line.startswith("COPY")
        for name in line.split()[2:-1]
    }
    assert all((ROOT / name).exists() for name in copied), copied
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert {"pyproject.toml", "constraints.txt", "lakd_ray", "jobs", project["readme"]} <= copied
    assert set(project["license-files"]) <= copied


def test_scripts_in_jobs_run_commands_that_exist():
    commands = typer.main.get_command(app).commands
    for script in (ROOT / "jobs").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
        names = [node.args[0].value for node in calls if isinstance(node.func, ast.Name) and node.func.id == "run_job"]
        if script.name != "submit.py":
            assert names == [script.stem.replace("_", "-")] and names[0] in commands, script.name


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.name)
def test_experiments_load_and_their_printed_form_loads_the_same(file, tmp_path):
    config = load_config(file)
    assert config.name == file.stem
    printed = tmp_path / "printed.yaml"
    printed.write_text(to_documented_yaml(config), encoding="utf-8")
    assert load_config(printed) == config


def test_the_paper_fold_has_the_settings_of_the_paper():
    config = load_config("paper-fold")
    assert config.train.workers * config.batch.max_utterances * config.train.gradient_accumulation_steps == 16
    assert config.batch.max_padded_seconds >= config.batch.max_utterances * config.audio.max_seconds
    assert (config.seed, config.audio.max_seconds) == (42, 20)
    for recipe in (config.teacher, config.student):
        assert (recipe.optim.epochs, recipe.optim.lr) == (20, 3e-5)
        assert recipe.model.pretrained == "facebook/wav2vec2-base" and recipe.model.freeze_feature_encoder
    assert {corpus.split.scheme for corpus in config.corpora} == {"paper"}
    defaults = load_config("demo").distill
    assert config.distill.kd.lam == pytest.approx(defaults.kd.lam)
    assert config.distill.mtkd.lam == pytest.approx(defaults.mtkd.lam)


def test_the_paper_grid_has_the_settings_of_the_paper():
    config, fold = (load_config(name) for name in ("paper", "paper-fold"))
    assert config.corpora == fold.corpora and config.teacher == fold.teacher and config.student == fold.student
    assert config.distill == fold.distill and set(config.distill.setups) == {"monolingual", "multilingual"}
    assert config.grid.folds is None and len(config.grid.seeds) == 3
    assert config.train.workers * config.batch.max_utterances * config.train.gradient_accumulation_steps == 16
    assert config.batch.max_padded_seconds >= config.batch.max_utterances * config.audio.max_seconds
    reference = with_variant(config, "reference").distill
    assert reference.kd == DistillLossConfig(temperature=5, lam=0.75, reference_compat=True)
    assert reference.mtkd == PAPER_LOSS
    varied = {with_variant(config, name).distill.mtkd.weighting for name in config.grid.variants}
    assert varied == {*get_args(Weighting)} - {"attention"}


def test_the_kubernetes_job_has_room_for_its_experiment():
    words = job()["entrypoint"].split()
    experiment, overrides = words[words.index("--set") - 1], words[words.index("--set") + 1 :]
    inside = "/home/ray/lakd/"
    assert f"WORKDIR {inside.rstrip('/')}\n" in read("cluster/Dockerfile")
    assert all(word.startswith(inside) for word in words if word.startswith("/"))
    config = load_config(experiment, overrides)
    assert storage.is_remote(config.storage)
    (group,) = job()["rayClusterSpec"]["workerGroupSpecs"]
    (pod,) = group["template"]["spec"]["containers"]
    assert group["replicas"] * int(pod["resources"]["limits"]["nvidia.com/gpu"]) >= config.train.workers
    cpus_of_worker = config.train.cpus_per_worker + config.train.reader_cpus_per_worker
    assert int(pod["resources"]["limits"]["cpu"]) >= cpus_of_worker
    assert job()["shutdownAfterJobFinishes"] is True


def test_slurm_reserves_the_gpus_of_the_paper_fold():
    reserved = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", read("cluster/slurm.sh"), re.MULTILINE))
    train = load_config("paper-fold").train
    assert int(reserved["nodes"]) * int(reserved["gpus-per-node"]) >= train.workers
    needed = train.workers * train.cpus_per_worker + train.total_reader_cpus(train.workers)
    assert int(reserved["nodes"]) * int(reserved["cpus-per-task"]) >= needed


def test_clusters_require_a_token():
    assert job()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert service()["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    assert all("RAY_AUTH_MODE=token" in script.read_text() for script in SCRIPTS)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")  # Ray Serve's own
@pytest.mark.parametrize("application", applications(), ids=["serve.yaml", "rayservice.yaml"])
def test_serve_arguments_are_accepted(application, tmp_path):
    module, _, name = application["import_path"].partition(":")
    entry = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(entry).parameters) == 1
    absent = {**application["args"], "checkpoint": str(tmp_path)}
    with pytest.raises(CheckpointError, match="SEAL"):  # raised after all other checks
        entry(absent)
    with pytest.raises(ConfigError, match="absolute"):
        entry({**absent, "checkpoint": "relative"})


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")  # Ray Serve's own
@pytest.mark.parametrize("gpus", [0, 0.5])
def test_replicas_reserve_their_cpus_and_gpus(gpus, tmp_path):
    from lakd_ray.serve.app import build

    checkpoint = tiny_models.checkpoint(tmp_path)
    serve = {"cpus": 2, "gpus": gpus, "canary": {"checkpoint": checkpoint}}
    application: Any = build({"checkpoint": checkpoint, "serve": serve})
    for replicas in application._bound_deployment.init_args[:2]:
        options = replicas._bound_deployment.ray_actor_options
        assert (options["num_cpus"], options["num_gpus"]) == (2, gpus)


def test_runtime_env_excludes_large_and_secret_files():
    env = parsed("runtime_env.yaml")
    assert set(env) == {"working_dir", "excludes", "env_vars"}, "nothing is installed when a job starts"
    assert env["excludes"][0] == "/*", "only what is listed is uploaded; tests/test_job_package.py applies the patterns"
    assert all(isinstance(value, str) for value in env["env_vars"].values())
    assert not any(name.startswith("AWS_") or "TOKEN_PATH" in name for name in env["env_vars"])


def test_workers_get_the_same_settings_on_every_cluster():
    from lakd_ray.cluster.session import _WORKER_ENVIRONMENT

    settings = parsed("runtime_env.yaml")["env_vars"]
    starting = {"RAY_raylet_start_wait_time_s"}  # for the process that starts Ray, not for jobs
    assert {
        name: value for name, value in _WORKER_ENVIRONMENT.items() if name not in starting
    }.items() <= settings.items()
    for name, value in settings.items():
        for file in ("cluster/Dockerfile", *(["cluster/slurm.sh"] if not name.startswith("RAY_JOB_") else [])):
            assert re.search(rf"\b{name}={re.escape(value)}(\s|$)", read(file)), f"{file} lacks {name}"


def test_submit_accepts_every_job():
    shown = subprocess.run(
        [sys.executable, "jobs/submit.py", "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for script in (ROOT / "jobs").glob("*.py"):
        assert script.stem in shown.stdout


def test_an_override_of_one_section_leaves_its_alias_alone():
    config = load_config("paper-fold", ["student.optim.epochs=3"])  # there: student: *recipe
    assert (config.teacher.optim.epochs, config.student.optim.epochs) == (20, 3)


def test_slurm_passes_a_signal_to_the_driver_and_reports_its_status(tmp_path):
    """With stand-ins for Slurm and Ray, the batch script itself runs."""
    programs = {
        "scontrol": "echo node1",
        "ray": 'while [[ $1 != -- ]]; do shift; done; shift; exec "$@"',
        "srun": 'shift; exec "$@"',
        "python": f"exec {sys.executable} {tmp_path}/driver.py",
    }
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in programs.items():
        file = tmp_path / ".venv/bin" / name
        file.write_text(f"#!/usr/bin/env bash\n[[ $0 == */ray && $1 == get-auth-token ]] && exit\n{text}\n")
        file.chmod(0o755)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}/.venv/bin:$PATH\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/pipeline.py").touch()
    (tmp_path / "driver.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    env = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2", "LAKD_STORAGE": "/data",
    }  # fmt: skip
    script = str(CLUSTER / "slurm.sh")
    with subprocess.Popen(["bash", script, "demo"], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert not list(tmp_path.glob(".lakd-*"))


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on:DeprecationWarning")  # Ray Serve's own
def test_proxies_have_limits():
    from ray.serve.schema import ServeDeploySchema

    from lakd_ray.config.serve import ProxyLimits, ServeConfig
    from lakd_ray.serve.proxy.middleware import environment

    expected = environment(ServeConfig().proxy_limits)
    for file in (parsed("cluster/serve.yaml"), yaml.safe_load(service()["serveConfigV2"])):
        variables = file["controller_options"]["runtime_env"]["env_vars"]
        hook = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
        assert variables == {hook: expected[hook]}
        assert ServeDeploySchema.model_validate(file).controller_options.runtime_env == {"env_vars": variables}
        for application in file["applications"]:  # the proxy's defaults are the limits of the application
            config = ServeConfig.model_validate(application["args"]["serve"])
            assert config.proxy_limits == ProxyLimits()
