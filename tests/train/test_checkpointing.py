"""Test the random state that checkpoints store."""

import itertools
import random

import torch

from lakd_ray.train.checkpointing import load_rank_state, save_rank_state, seed_rng


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
