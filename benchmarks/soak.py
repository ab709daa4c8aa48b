"""Soak test of the endpoint: good and hostile clients for minutes; memory, descriptors, processes and files stay level.

    python benchmarks/soak.py [--minutes 30] [--attackers 4] [--seed 0]

It starts an endpoint of a small network with the default limits on loopback, and three phases: honest clients alone for
a fifth of the time, honest and hostile ones for three fifths, honest ones alone again. The hostile clients have an
address of their own, as on a network. Each kind of attack is bounded, and all of it goes to this endpoint only.

The exit status is 1 if memory grew during the attack, if the end has more open descriptors, processes or temporary
files than the first phase, if an honest request failed, if its 99th percentile was more than twice that of the first
phase, or if any response was a 5xx other than 503.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil

from common import SMALL, write_checkpoint
from hostile import recording
from serve import Server, running

PHASES = {"calm": 0.2, "attack": 0.6, "after": 0.2}
HONEST_CLIENTS = 2
HONEST_PAUSE_S = 0.5
SAMPLE_S = 2.0
MAX_GROWTH_MB = 60.0
MAX_GROWTH_DESCRIPTORS = 20
MAX_SLOWDOWN = 2.0
ROLES = {
    "proxy": "ProxyActor",
    "ingress": "Ingress",
    "replica": "ModelReplica",
    "decoders": "forkserver",
    "ffmpeg": "ffmpeg",
}


@dataclass
class Samples:
    """What the phases have measured."""

    phase: str = "warm-up"
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hostile: Counter[str] = field(default_factory=Counter)
    usage: dict[str, list[dict[str, "Usage"]]] = field(default_factory=lambda: defaultdict(list))
    files: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Usage:
    """Resources of the processes with one role."""

    processes: int
    megabytes: float
    descriptors: int


def measure_usage() -> dict[str, Usage]:
    """Return the resources of the endpoint's processes, which are descendants of this one, by role."""
    found: dict[str, list[tuple[float, int]]] = {role: [] for role in ROLES}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = " ".join([process.name(), *process.cmdline()])
            role = next((role for role, mark in ROLES.items() if mark in command), None)
            if role is not None:
                found[role].append((process.memory_info().rss / 1e6, process.num_fds()))
    return {
        role: Usage(len(items), sum(memory for memory, _ in items), sum(count for _, count in items))
        for role, items in found.items()
    }


def count_files(folder: Path) -> int:
    """Return the number of temporary files, without the logs and sockets of Ray's session."""
    return sum(not path.is_dir() for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "ray")


class Honest(threading.Thread):
    """A client that sends a recording of a second and waits for its result, at an even rate."""

    def __init__(self, url: str, samples: Samples, halt: threading.Event):
        super().__init__(daemon=True)
        self._url, self._samples, self._halt = url, samples, halt

    def run(self) -> None:
        """Send recordings until the end of the test."""
        content = recording(1.0)
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._halt.wait(HONEST_PAUSE_S):
                phase, start = self._samples.phase, time.perf_counter()
                try:
                    response = client.post("/v1/emotion", content=content, headers={"Content-Type": "audio/wav"})
                    outcome = str(response.status_code)
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                self._samples.latencies_s[phase].append(time.perf_counter() - start)
                if outcome != "200":
                    self._samples.failures[phase][outcome] += 1


def _start_hostile(url: str, attackers: int, seed: int, seconds: float) -> "subprocess.Popen[str]":
    """Start the hostile clients in a process of their own: in this one they would delay the measurements."""
    program = str(Path(__file__).with_name("hostile.py"))
    command = [sys.executable, program, url, "--attackers", str(attackers), "--seed", str(seed)]
    return subprocess.Popen([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)


def soak(url: str, minutes: float, attackers: int, seed: int, folder: Path) -> Samples:
    """Run the phases and return their measurements."""
    samples, halt = Samples(), threading.Event()
    honest = [Honest(url, samples, halt) for _ in range(HONEST_CLIENTS)]
    for client in honest:
        client.start()
    time.sleep(min(10.0, 6 * minutes))  # warms up
    for phase, share in PHASES.items():
        samples.phase = phase
        seconds = 60 * minutes * share
        hostile = _start_hostile(url, attackers, seed, seconds) if phase == "attack" else None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            samples.usage[phase].append(measure_usage())
            samples.files[phase].append(count_files(folder))
            time.sleep(SAMPLE_S)
        if hostile is not None:
            samples.hostile.update(json.loads(hostile.communicate(timeout=120)[0]))
        print(f"{phase}: done", file=sys.stderr, flush=True)
    halt.set()
    return samples


def _quarter(values: Sequence[Any], index: int) -> Sequence[Any]:
    size = max(1, len(values) // 4)
    return values[:size] if index == 0 else values[-size:]


def find_failures(samples: Samples) -> list[str]:
    """Return the criteria that the measurements miss."""
    failures = []
    calm, attack, after = (samples.usage[phase] for phase in PHASES)
    for role in ROLES:
        early, late = (median(usage[role].megabytes for usage in _quarter(attack, index)) for index in (0, -1))
        if late - early > MAX_GROWTH_MB:
            failures.append(f"{role} grew from {early:.0f} to {late:.0f} MB during the attack")
        for name, limit in (("descriptors", MAX_GROWTH_DESCRIPTORS), ("processes", 0)):
            before = max(getattr(usage[role], name) for usage in _quarter(calm, -1))
            end = min(getattr(usage[role], name) for usage in _quarter(after, -1))
            if end > before + limit:
                failures.append(f"{role} has {end} {name} at the end, {before} in the calm")
    if min(_quarter(samples.files["after"], -1)) > max(_quarter(samples.files["calm"], -1)):
        failures.append(
            f"{samples.files['after'][-1]} temporary files at the end, {samples.files['calm'][-1]} in the calm"
        )
    for phase, counts in samples.failures.items():
        if counts:
            failures.append(f"honest requests failed ({phase}): {dict(counts)}")
    slowdown = np.quantile(samples.latencies_s["attack"], 0.99) / np.quantile(samples.latencies_s["calm"], 0.99)
    if slowdown > MAX_SLOWDOWN:
        failures.append(f"the 99th percentile of honest clients was {slowdown:.1f} times that of the calm")
    for outcome, count in samples.hostile.items():
        status = outcome.rpartition(" ")[2]
        if (status.startswith("5") and status != "503") or status == "1011":
            failures.append(f"{count} x {outcome}")
    return failures


def render(samples: Samples) -> str:
    """Return the measurements as tables."""
    rows = ["| honest clients | requests | failed | p50, ms | p99, ms |", "|---|---|---|---|---|"]
    for phase in PHASES:
        seconds = samples.latencies_s[phase]
        p50, p99 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99))
        rows.append(f"| {phase} | {len(seconds)} | {samples.failures[phase].total()} | {p50:.0f} | {p99:.0f} |")
    rows += [
        "",
        "| processes | MB calm | MB attack, start | MB attack, end | MB after | descriptors calm, after | number |",
    ]
    rows += ["|---|---|---|---|---|---|---|"]
    calm, attack, after = (samples.usage[phase] for phase in PHASES)
    for role in ROLES:
        parts = (_quarter(calm, -1), _quarter(attack, 0), _quarter(attack, -1), _quarter(after, -1))
        memory = " | ".join(f"{median(usage[role].megabytes for usage in part):.0f}" for part in parts)
        first, last = calm[-1][role], after[-1][role]
        rows.append(
            f"| {role} | {memory} | {first.descriptors}, {last.descriptors} | {first.processes}, {last.processes} |"
        )
    rows += ["", f"temporary files: {samples.files['calm'][-1]} calm, {max(samples.files['attack'])} at most, "
             f"{samples.files['after'][-1]} after"]  # fmt: skip
    rows += ["", "| hostile request and outcome | number |", "|---|---|"]
    return "\n".join(rows + [f"| {outcome} | {count} |" for outcome, count in sorted(samples.hostile.items())])


def main() -> int:
    """Run the test and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        checkpoint = write_checkpoint(Path(folder), SMALL)
        files = Path(folder) / "t"
        files.mkdir()
        os.environ["TMPDIR"] = str(files)  # of the endpoint
        with running(Server("torch", checkpoint, threads=1)) as url:
            samples = soak(url, options.minutes, options.attackers, options.seed, files)
    print(render(samples))
    failures = find_failures(samples)
    print("\n" + "\n".join([*(f"FAIL: {failure}" for failure in failures)] or ["PASS"]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
