"""Sections of `benchmarks/gpu.sh`, the benchmark for a GPU, and its table.

    python benchmarks/gpu.py run SECTION --raw FOLDER [--small]
    python benchmarks/gpu.py table --raw FOLDER --out FOLDER [--small]

`run` measures one section and stores its figures in the folder while it runs. `table` needs nothing but these files: it
writes `gpu.md`, one table with all figures, their aims and what failed, and `gpu.json`, all raw figures. Without a GPU
every section runs on CPUs, with `--small` in seconds, which tests the benchmark and measures nothing.
"""

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from figures import Recorder, Section, format_report

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "ray", "deepspeed", "accelerate", "numpy")
REFERENCE_AIM, TRAINER_AIM = 40.0, 4.0  # times the baseline's speed


def environment(recorder: Recorder, small: bool) -> None:
    """Store the hardware, the versions and the commit, and check that every module can be imported."""
    import torch

    from common import device, has_gpu

    facts = {"card": f"none, {os.cpu_count()} CPU cores", "driver": "none"}
    if has_gpu():
        facts["card"] = torch.cuda.get_device_name(device())
        facts["memory, GiB"] = f"{torch.cuda.get_device_properties(device()).total_memory / 2**30:.0f}"
        facts["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["CUDA"], facts["cuDNN"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    facts |= {"CPU cores": str(os.cpu_count()), "Python": platform.python_version()}
    facts |= {name: _version(name) for name in PACKAGES}
    facts["commit"] = os.environ.get("COMMIT") or _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    recorder.add_facts(**facts)
    recorder.add_facts(unexpected_versions=_unexpected_versions())
    modules = sorted(
        str(file.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for file in (ROOT / "lakd_ray").rglob("*.py")
        if file.stem not in ("__init__", "__main__")
    )
    imported = 0
    for module in modules:
        with recorder.attempt(f"import of {module}"):
            importlib.import_module(module)
            imported += 1
    recorder.add("modules that cannot be imported", [len(modules) - imported], digits=0, aim=0, at_most=True)


def ceilings(recorder: Recorder, small: bool) -> None:
    """Measure matrix products and copies."""
    import ceilings as limits

    limits.measure(recorder.add, small)


def tests(recorder: Recorder, small: bool) -> None:
    """Run the tests with the marker `gpu`, of the modules that have it, those that start Ray last; name failed ones."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    for kind, marker in {"without Ray": "gpu and not ray", "with Ray": "gpu and ray"}.items():
        with recorder.attempt(f"tests {kind}"):
            counts, failures = _run_pytest(marker, files)
            for outcome, count in counts.items():
                aim = {"aim": 0, "at_most": True} if outcome == "failed" else {}
                recorder.add(f"tests {kind} that {outcome}", [count], digits=0, **aim)
            recorder.add_facts(**{f"failed {kind}": failures})
            for name, message in failures.items():
                with recorder.attempt(f"test {name}"):
                    raise AssertionError(message)


def _run_pytest(marker: str, files: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Run the tests that a marker expression selects; return the number of each outcome and the failures' messages."""
    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", marker, "-v", "--tb=short", "-p", "no:cacheprovider"]
        # The versions may differ from the pinned ones, and with them the warnings, which are errors by default.
        command += ["-W", "default", "--continue-on-collection-errors", f"--junitxml={report}", *files]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.is_file():
            raise RuntimeError(f"pytest ended with status {status} and without a report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures: dict[str, str] = {}
    for case in cases:
        for problem in (*case.iter("failure"), *case.iter("error")):
            failures[f"{case.get('classname')}.{case.get('name')}"] = problem.get("message", "")
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"passed": len(cases) - len(failures) - skipped, "were skipped": skipped, "failed": len(failures)}
    return counts, failures


def epoch(recorder: Recorder, small: bool) -> None:
    """Compare a multi-teacher epoch with the reference code's step and with transformers' Trainer."""
    from common import BASE, SMALL, single_rank
    from steps import BASELINES, LADDER, Comparison, compare
    from task import Task

    own = [name for name, options in LADDER.items() if "features" in options]
    if small:
        own.remove("+ torch.compile (train.compile)")  # the last variant is compiled too, which takes long on a CPU

    def record(result: Comparison) -> None:
        speed = result.task.seconds / result.caches_seconds
        recorder.add("caches of features and logits, once, audio-s/s", [speed], digits=0)
        recorder.add_facts(seconds=result.seconds, audio_seconds=result.task.seconds)
        for name in result.seconds:
            memory = result.memory_gib[name]
            recorder.add(f"epoch, {name}, audio-s/s", result.speeds(name), digits=0, memory_gib=memory)
        for name in own:
            for baseline, aim in zip(BASELINES, (REFERENCE_AIM, TRAINER_AIM), strict=True):
                if ratios := result.ratios(name, baseline):
                    goal = aim if LADDER[name].get("precision") == "bf16" else None
                    recorder.add(f"epoch, {name}, of {baseline}", ratios, digits=2, aim=goal)

    architecture = (SMALL if small else BASE) | {"apply_spec_augment": False}
    with single_rank():
        task = Task(12 if small else 256, architecture, 4 if small else 16)
        compare(task, 1 if small else 2, "deepspeed", [*BASELINES, *own], recorder.attempt, record)


def share(recorder: Recorder, small: bool) -> None:
    """Measure fine-tuning and teacher logits as shares of the matrix product rate."""
    import matmul_share
    from common import single_rank

    with single_rank():
        matmul_share.measure(recorder.add, recorder.attempt, small=small, repeats=1 if small else 3)


def ray_train(recorder: Recorder, small: bool) -> None:
    """Compare an epoch inside Ray Train with the bare loop."""
    import train

    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        workload = train.Workload("small" if small else "base", folder, 4 if small else 6)
        train.compare_with_bare_loop(workload, recorder.add)


def endpoint(recorder: Recorder, small: bool) -> None:
    """Compare the endpoint with transformers' pipeline behind FastAPI."""
    import serve
    from common import BASE, SMALL, has_gpu, write_checkpoint

    options = argparse.Namespace(
        requests=16 if small else 256, repeats=1 if small else 3, threads=2 if small else 4, gpus=int(has_gpu())
    )
    with tempfile.TemporaryDirectory(prefix="lakd-") as folder:
        checkpoint = write_checkpoint(Path(folder), SMALL if small else BASE)
        backends = ("torch",) if small else ("torch", "torch-bf16")
        levels = serve.compare_at_equal_p99(checkpoint, backends, options, recorder.add, recorder.attempt)
    recorder.add_facts(
        levels={name: [[asdict(level) for level in repeat] for repeat in all_] for name, all_ in levels.items()}
    )


SECTIONS: dict[str, tuple[str, Callable[[Recorder, bool], None]]] = {
    "environment": ("environment", environment),
    "ceilings": ("ceilings of matrix products and copies", ceilings),
    "share": ("training and teachers, share of the matrix product rate", share),
    "epoch": ("a multi-teacher epoch", epoch),
    "ray_train": ("inside Ray Train, streaming from shards", ray_train),
    "endpoint": ("the endpoint", endpoint),
    "tests": ("tests with the marker gpu", tests),
}
"""Title and function of each section, in the order of the table."""


def write_report(raw: Path, out: Path, small: bool) -> None:
    """Write the table and the raw figures of the sections that have run."""
    sections = [Section.read(name, title, raw) for name, (title, _) in SECTIONS.items()]
    facts = dict(sections[0].facts)
    unexpected = facts.pop("unexpected_versions", [])
    title = "Benchmark on a GPU" if not small else "Benchmark on a GPU, small sizes: a test of the benchmark itself"
    text = format_report(title, facts, sections)
    if unexpected:
        text += f"\nVersions outside the requirements of this project: {', '.join(unexpected)}.\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.md").write_text(text)
    (out / "gpu.json").write_text(json.dumps([asdict(section) for section in sections], indent=1))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _unexpected_versions() -> list[str]:
    """Return the packages whose version does not meet pyproject.toml; this project need not be installed."""
    import tomllib

    from packaging.requirements import Requirement

    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [(Requirement(text), _version(re.split(r"[\[=<>~ ]", text)[0])) for text in requirements]
    return [
        f"{requirement.name} {version}, not {requirement.specifier}"
        for requirement, version in found
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True)
    ]


def main() -> None:
    """Run one section, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run, table = commands.add_parser("run"), commands.add_parser("table")
    run.add_argument("section", choices=SECTIONS)
    for command in (run, table):
        command.add_argument("--raw", type=Path, required=True, help="folder of the sections' figures")
        command.add_argument("--small", action="store_true", help="use tiny networks, to test the benchmark")
    table.add_argument("--out", type=Path, required=True, help="folder of the table")
    options = parser.parse_args()
    if options.command == "table":
        write_report(options.raw, options.out, options.small)
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    SECTIONS[options.section][1](Recorder(options.raw / f"{options.section}.json"), options.small)


if __name__ == "__main__":
    main()
