"""Test the random state that checkpoints store."""

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
