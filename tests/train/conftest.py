"""What several ranks have computed, for the tests of the engine and the loop."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one rank and two ranks made of the same data, by world size; the three processes run side by side."""
    out = tmp_path_factory.mktemp("engine")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]),
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.getbasetemp() / "ops")),
        "OMP_NUM_THREADS": "1",
        "LOCAL_RANK": "0",
    }
    ranks = [(0, 1), (0, 2), (1, 2)]
    logs = [out / f"rank-{rank}-of-{world}.log" for rank, world in ranks]
    processes = []
    try:
        for (rank, world), log in zip(ranks, logs, strict=True):
            command = [
                sys.executable,
                str(HERE.parent / "support" / "engine_worker.py"),
                str(rank),
                str(world),
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
    return {world: torch.load(out / f"world-{world}.pt", weights_only=False) for world in (1, 2)}
