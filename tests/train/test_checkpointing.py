"""Test the folders that checkpoints are saved to, and the random state that they store."""

import itertools
import random

import pytest
import torch

from lakd_ray import storage
from lakd_ray.errors import DiskFullError
from lakd_ray.runs.state import ResumePoint, RunState
from lakd_ray.train.checkpointing import AsyncCheckpointer, load_rank_state, save_rank_state, seed_rng


def draw_from_each_generator() -> tuple[float, ...]:
    """Draw one number from each generator that training uses."""
    return (random.random(), float(torch.rand(())), float(torch.randn(1000).sum()))


def test_generators_continue_from_the_saved_state(tmp_path):
    seed_rng(3, 0)
    draw_from_each_generator()
    save_rank_state(tmp_path / "generators.pt")
    expected = [draw_from_each_generator(), draw_from_each_generator()]
    seed_rng(99, 1)
    load_rank_state(tmp_path / "generators.pt")
    assert [draw_from_each_generator(), draw_from_each_generator()] == expected


def test_seeding_is_repeatable_and_differs_between_ranks_and_seeds():
    draws_by_key = {}
    for key in ((3, 0), (3, 1), (4, 0), (2**32, 7)):
        for _ in range(2):
            seed_rng(*key)
            draws = draw_from_each_generator()
            assert draws_by_key.setdefault(key, draws) == draws
    assert len({value for draws in draws_by_key.values() for value in draws}) == 3 * len(draws_by_key)


def test_a_state_is_restored_on_a_different_device(tmp_path, monkeypatch):
    gpu, restored = torch.device("cuda:0"), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(4, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(device))
    sums = torch.tensor([1.0])
    for saved_on, loaded_on in itertools.product((gpu, torch.device("cpu")), repeat=2):
        save_rank_state(tmp_path / "generators.pt", sums, saved_on)
        assert load_rank_state(tmp_path / "generators.pt", loaded_on) == sums
    assert restored == [gpu]


@pytest.mark.usefixtures("single_rank")
def test_files_of_an_earlier_attempt_with_more_ranks_are_deleted(tmp_path):
    run = tmp_path / "run"
    earlier = run / "resume-0001" / "state"
    earlier.mkdir(parents=True)
    (earlier / "rank_1_optim_states.pt").write_bytes(b"of the second rank, which was killed before the checksums")
    (run / "best-0001").mkdir()
    (run / "best-0001" / "model-00002.safetensors").write_bytes(b"")
    checkpointer = AsyncCheckpointer(str(run), 1, 60.0)
    with checkpointer.save(RunState(ResumePoint(1, 0, "resume-0001")), set()) as (resume, checkpoint):
        (resume / "state").mkdir()
        (resume / "state" / "rank_0_optim_states.pt").write_bytes(b"0")
        (checkpoint / "config.json").write_text("{}")
    checkpointer.wait()
    for name, file in (("resume-0001", "state/rank_0_optim_states.pt"), ("best-0001", "config.json")):
        with storage.open_checksummed_folder(f"{run}/{name}") as folder:
            names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {file, storage.CHECKSUMS_FILE}


@pytest.mark.usefixtures("single_rank")
def test_a_full_disk_keeps_its_type_across_ranks(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/x/y")

    monkeypatch.setattr(storage, "upload_folder", fail)
    checkpointer = AsyncCheckpointer(str(tmp_path), 1, 60.0)
    with checkpointer.save(RunState(ResumePoint(1, 0, "resume-0001")), set()):
        pass
    with pytest.raises(DiskFullError, match=r"rank 0 could not save its state: cannot write /x/y: No space left"):
        checkpointer.wait()
    with pytest.raises(DiskFullError), checkpointer.save(RunState(ResumePoint(1, 0, "resume-0001")), set()):
        raise RuntimeError("[enforce fail] . open file failed with strerror: No space left on device")  # of torch.save
