"""Measured limits of a device: matrix products by precision and size, and copies between host and device.

    python benchmarks/ceilings.py [--small]

Rates are of random data, from calls in a row that take at least `MIN_SECONDS` together, after a warm-up. Products with
the shapes of wav2vec2-base have as many rows as a batch of 60 s has frames.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch

from common import device, has_gpu, timed
from figures import spread

MIN_SECONDS = 0.05
REPEATS = 5
PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
"""Type of the matrices and torch's setting for products of float32."""
FRAMES = 3000
SIZES = {
    "8192 x 8192 x 8192": (8192, 8192, 8192),
    "4096 x 4096 x 4096": (4096, 4096, 4096),
    "wav2vec2-base, attention": (FRAMES, 768, 768),
    "wav2vec2-base, feed-forward": (FRAMES, 768, 3072),
}
SMALL_SIZES = {"256 x 256 x 256": (256, 256, 256), "wav2vec2-base, attention": (64, 768, 768)}
MEBIBYTE = 2**20


def matmul_tflops(precision: str, size: tuple[int, int, int], repeats: int = REPEATS) -> list[float]:
    """Return the rate of a matrix product [M, K] x [K, N] in TFLOP/s, one value for each repeat."""
    dtype, float32_products = PRECISIONS[precision]
    rows, inner, columns = size
    left, right = (torch.randn(shape, device=device()).to(dtype) for shape in ((rows, inner), (inner, columns)))
    output = torch.empty(rows, columns, dtype=dtype, device=device())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(float32_products)
    try:
        seconds = seconds_per_call(lambda: torch.mm(left, right, out=output), repeats)
    finally:
        torch.set_float32_matmul_precision(before)
    return [2 * math.prod(size) / second / 1e12 for second in seconds]


def matmul_ceiling(precision: str, small: bool, repeats: int = REPEATS) -> list[float]:
    """Return the rate of the largest matrix product in TFLOP/s."""
    size = next(iter((SMALL_SIZES if small else SIZES).values()))
    return matmul_tflops(precision, size, repeats)


def seconds_per_call(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of a call, as the mean over calls in a row, one value for each repeat."""
    for _ in range(3):
        timed(call)
    count = math.ceil(MIN_SECONDS / max(timed(call), 1e-6))

    def calls_in_a_row() -> None:
        for _ in range(count):
            call()

    return [timed(calls_in_a_row) / count for _ in range(repeats)]


def copy_rates(mebibytes: int, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Return the rates of copies in GB/s; a copy on the device counts the bytes that are read and written."""
    count = mebibytes * MEBIBYTE
    on_device = torch.empty(count, dtype=torch.uint8, device=device())
    pageable = torch.randint(0, 255, (count,), dtype=torch.uint8)
    copies = {
        "host to device, pageable": (on_device, pageable, 1),
        "on the device": (torch.empty_like(on_device), on_device, 2),
    }
    if has_gpu():  # without a GPU, torch has no pinned memory
        pinned = pageable.pin_memory()
        copies["host to device, pinned"] = (on_device, pinned, 1)
        copies["device to host, pinned"] = (pinned, on_device, 1)
    rates = {}
    for name, (target, source, passes) in copies.items():
        seconds = seconds_per_call(lambda to=target, from_=source: to.copy_(from_, non_blocking=True), repeats)
        rates[name] = [passes * count / second / 1e9 for second in seconds]
    return rates


def measure(add: Callable[..., Any], small: bool) -> None:
    """Measure everything; `add` takes the name of a figure and its values."""
    for precision in PRECISIONS:
        for name, size in (SMALL_SIZES if small else SIZES).items():
            add(f"{precision}, {name}, TFLOP/s", matmul_tflops(precision, size))
    mebibytes = 4 if small else 256
    for name, rates in copy_rates(mebibytes).items():
        add(f"copy of {mebibytes} MiB, {name}, GB/s", rates)


def main() -> None:
    """Print all rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="use small sizes, to test the benchmark")
    options = parser.parse_args()
    measure(lambda name, values: print(f"{name}: {spread(values)}", flush=True), options.small)


if __name__ == "__main__":
    main()
