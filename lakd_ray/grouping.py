"""Consecutive items in groups under a budget, such as recordings in batches of a limited duration."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def group_by_budget(
    items: Iterable[T], cost: Callable[[T], float], max_cost: float, max_items: float = math.inf
) -> Iterator[list[T]]:
    """Yield consecutive items in groups whose costs add up to at most `max_cost`; a larger item is a group of its own.

    Items are taken from the iterable only as far as the next group needs.

    Args:
        cost: cost of an item.
        max_items: largest number of items in a group.
    """
    group: list[T] = []
    total = 0.0
    for item in items:
        item_cost = cost(item)
        if group and (total + item_cost > max_cost or len(group) >= max_items):
            yield group
            group, total = [], 0.0
        group.append(item)
        total += item_cost
    if group:
        yield group
