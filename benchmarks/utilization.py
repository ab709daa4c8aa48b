"""Sample the utilization and the memory of the GPU while other processes use it.

Utilization is NVML's: the share of the last sampling period (a sixth of a second to a second) in which a kernel ran.
It comes from `pynvml` if it is installed, else from `nvidia-smi`. Without a GPU, the utilization of the CPUs takes its
turn, so that the benchmark can be tested.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

INTERVAL_S = 0.05

Reading = tuple[float, float]
"""Utilization in percent and used memory in GiB."""


@dataclass
class UtilizationSampler:
    """Sample in a thread while a `with` block runs.

    Attributes:
        source: the origin of the samples: `pynvml`, `nvidia-smi` or `CPU`.
        samples: time (`time.perf_counter`), utilization in percent and used memory in GiB.
    """

    source: str = ""
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.source, read = _make_reader()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(read,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self, read: Callable[[], Reading]) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.samples.append((time.perf_counter(), *read()))

    def busy_percent(self, intervals: Sequence[tuple[float, float]]) -> float:
        """Return the mean utilization within intervals of time, in percent.

        Raises:
            ValueError: no sample is in an interval.
        """
        values = [percent for at, percent, _ in self.samples if any(start <= at <= end for start, end in intervals)]
        if not values:
            raise ValueError(f"none of {len(self.samples)} samples is in one of {len(intervals)} intervals")
        return sum(values) / len(values)

    @property
    def peak_memory_gib(self) -> float:
        """Peak of the used memory of the device, of all processes."""
        return max((memory for _, _, memory in self.samples), default=0.0)


def _make_reader() -> tuple[str, Callable[[], Reading]]:
    try:
        import pynvml
    except ImportError:
        return ("nvidia-smi", _read_nvidia_smi) if shutil.which("nvidia-smi") else ("CPU", _CpuReader())
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return "CPU", _CpuReader()

    def read() -> Reading:
        used: Any = pynvml.nvmlDeviceGetMemoryInfo(handle).used
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu), used / 2**30

    return "pynvml", read


def _read_nvidia_smi() -> Reading:
    query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--id=0"]
    percent, mebibytes = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split(",")
    return float(percent), float(mebibytes) / 2**10


class _CpuReader:
    """The utilization of all CPUs since the last call, and the used memory of the machine."""

    def __init__(self) -> None:
        self._last = self._times()

    def __call__(self) -> Reading:
        (idle, total), last = self._times(), self._last
        self._last = idle, total
        elapsed = total - last[1]
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        used = int(memory["MemTotal"].split()[0]) - int(memory["MemAvailable"].split()[0])
        return 100 * (1 - (idle - last[0]) / elapsed) if elapsed else 0.0, used / 2**20

    @staticmethod
    def _times() -> tuple[int, int]:
        times = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return times[3] + times[4], sum(times)
