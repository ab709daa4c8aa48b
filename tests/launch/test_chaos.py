"""Workers, drivers and nodes are killed while a real run trains; its result equals that of an undisturbed run."""

import random
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.chaos import SMALL, Runs, find_workers, is_worker, kill_tree, marked_environment, small_cluster
from support.loop_scenario import read_in_process

from lakd_ray.config import Experiment, load_config
from lakd_ray.data import manifest as manifests
from lakd_ray.data import prepare
from lakd_ray.launch.driver import train_tasks
from lakd_ray.launch.run_queue import TrainingEvent
from lakd_ray.launch.worker import TrainingTask
from lakd_ray.runs import record as records
from lakd_ray.runs.graph import build_run_graph
from lakd_ray.runs.state import RunState
from lakd_ray.train import checkpointing, trainer
from lakd_ray.train import data_loader as feeds
from lakd_ray.train.data_loader import RankDataLoader

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000)]

EXPERIMENT = f"stages: [prepare, teachers]\n{SMALL}train: {{{{workers: {{workers}}, checkpoint_steps: 1}}}}\n"


def config_of(file: Path) -> tuple[Experiment, str]:
    config = load_config(file)
    return config, build_run_graph(config).teachers[0].folder(config)


def reached(folder: str) -> tuple[int, int]:
    latest = RunState.read(folder).latest
    return latest.epochs_done, latest.batches_done


def workers_of(mark: str) -> list[psutil.Process]:
    return find_workers(mark, "RayTrainWorker")


def kill_workers(
    count: int, folder: str, find: Callable[[], list[psutil.Process]], wait: Callable[[Callable[[], bool]], None]
) -> None:
    """Kill a worker, wait until the run has made progress, and repeat."""
    rng = random.Random(0)
    for _ in range(count):
        before = reached(folder)
        steps = rng.randint(1, 2)
        wait(lambda b=before, s=steps: reached(folder) >= (b[0], b[1] + s) and bool(find()))
        rng.choice(find()).kill()
        saved = reached(folder)
        wait(lambda s=saved: reached(folder) > s)


def assert_same_result(first: str, second: str) -> None:
    """Assert that two runs have the same metrics, and the same weights to the last bit."""
    states = [RunState.read(folder) for folder in (first, second)]
    metrics = [[(epoch["loss"], epoch["dev_UR"], epoch["dev_ce"]) for epoch in state.metrics] for state in states]
    assert metrics[0] == metrics[1]
    assert states[0].best_checkpoint_name == states[1].best_checkpoint_name
    files = [
        Path(folder, str(state.best_checkpoint_name), "model.safetensors")
        for folder, state in zip((first, second), states, strict=True)
    ]
    weights = [load_file(file) for file in files]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    records_of = [records.read_record(folder) for folder in (first, second)]
    assert all(record is not None and record["finished"] for record in records_of)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return marked_environment(tmp_path)


@pytest.fixture
def runs(tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Runs]:
    with closing(Runs(tmp_path, EXPERIMENT, environment=environment, **request.param)) as processes:
        yield processes


def train_here(config: Experiment, folder: str, scratch: Path) -> None:
    """Train the same run undisturbed in this process, without the streaming reader."""
    run, manifest = build_run_graph(config).teachers[0], manifests.load_manifest(config)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, when DeepSpeed is imported
        patch.setattr(feeds, "stream_batches", read_in_process)
        patch.setenv("LOCAL_RANK", "0")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{scratch / 'store'}", rank=0, world_size=1)
        try:
            trainer.train_run(
                RankDataLoader(run, config, manifest, None, 0, 1), folder, {"origin": "test"}, [], lambda _: None
            )
        finally:
            checkpointing._process_group.cache_clear()
            dist.destroy_process_group()
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_are_killed(tmp_path: Path) -> None:
    runs = Runs(tmp_path, EXPERIMENT, environment={}, workers=1, epochs=3)
    undisturbed, killed = (config_of(runs.experiment(name)) for name in ("undisturbed", "killed"))
    prepare.prepare_corpora(killed[0])
    events: list[TrainingEvent] = []
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(
            train_tasks,
            [TrainingTask(killed[0], build_run_graph(killed[0]).teachers[0])],
            name="killed",
            on_event=events.append,
        )

        def wait(until: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 120
            while not until():
                assert not training.done(), f"it ended too early: {training.exception()}"
                assert time.monotonic() < deadline, f"it got no further: {events}"
                time.sleep(0.02)

        kill_workers(2, killed[1], own_workers, wait)
        training.result(timeout=200)
    train_here(killed[0], undisturbed[1], tmp_path)
    assert_same_result(undisturbed[1], killed[1])
    assert [event["event"] for event in events].count("lost") == 2


def own_workers() -> list[psutil.Process]:
    """Return Ray Train's workers in this process's cluster."""
    return [process for process in psutil.Process().children(recursive=True) if is_worker(process, "RayTrainWorker")]


@pytest.mark.slow
@pytest.mark.parametrize("runs", [{"workers": 2, "epochs": 8}], indirect=True)
def test_twenty_workers_and_two_drivers_are_killed(runs: Runs, tmp_path: Path) -> None:
    undisturbed, killed = (config_of(runs.experiment(name)) for name in ("undisturbed", "killed"))
    runs.finish(runs.start("undisturbed"))
    for _ in range(2):
        process = runs.start("killed")
        before = reached(killed[1])
        runs.wait(process, lambda b=before: reached(killed[1]) > b)
        kill_tree(process)
    process = runs.start("killed")
    kill_workers(20, killed[1], partial(workers_of, str(tmp_path)), partial(runs.wait, process))
    runs.finish(process)
    assert_same_result(undisturbed[1], killed[1])


@pytest.mark.slow
def test_two_nodes_are_lost(tmp_path: Path, environment: dict[str, str]) -> None:
    """A head node too small for the run, and two nodes; the one that trains is killed, twice."""
    with small_cluster(environment, 2, cpus=3) as nodes:
        connected = {**environment, "RAY_ADDRESS": nodes.address}
        runs = Runs(tmp_path, EXPERIMENT, environment=connected, workers=2, epochs=8)
        with closing(runs):
            undisturbed, killed = (config_of(runs.experiment(name)) for name in ("undisturbed", "killed"))
            runs.finish(runs.start("undisturbed"))
            process = runs.start("killed")
            for _ in range(2):
                before = reached(killed[1])
                runs.wait(process, lambda b=before: reached(killed[1]) > b and bool(workers_of(str(tmp_path))))
                nodes.lose(workers_of(str(tmp_path)))
            runs.finish(process)
            assert_same_result(undisturbed[1], killed[1])
