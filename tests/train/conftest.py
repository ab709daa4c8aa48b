"""Compute the results of one and two ranks for the tests of engines and of the trainer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.engine_results import EngineResults

FOLDER = Path(__file__).parent


@pytest.fixture
def single_rank(tmp_path: Path) -> Iterator[None]:
    """Create a process group of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> EngineResults:
    """Train on the same data with one rank and with two ranks; the three processes run at the same time."""
    out = tmp_path_factory.mktemp("engine")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent)]),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "ops")),
        "OMP_NUM_THREADS": "1",
        "LOCAL_RANK": "0",
    }
    ranks = [(0, 1), (0, 2), (1, 2)]
    logs = [out / f"rank-{rank}-of-{world_size}.log" for rank, world_size in ranks]
    processes = []
    try:
        for (rank, world_size), log in zip(ranks, logs, strict=True):
            command = [
                sys.executable,
                str(FOLDER.parent / "support" / "engine_worker.py"),
                str(rank),
                str(world_size),
                str(out),
            ]
            with log.open("w") as stream:
                processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT))
        codes = [process.wait(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return EngineResults(*(torch.load(out / f"world-{world_size}.pt", weights_only=False) for world_size in (1, 2)))
