"""Groups under a budget."""

from collections.abc import Iterator

import pytest

from lakd_ray.grouping import group_by_budget


@pytest.mark.parametrize(("costs", "max_items", "expected"), [
    ([], 9, []),
    ([1, 2, 3], 9, [[1, 2, 3]]),
    ([3, 3, 1, 5, 1], 9, [[3, 3], [1, 5], [1]]),
    ([9, 1, 9], 9, [[9], [1], [9]]),
    ([0, 0, 0, 0, 0], 2, [[0, 0], [0, 0], [0]]),
])  # fmt: skip
def test_groups(costs, max_items, expected):
    assert list(group_by_budget(costs, float, 6, max_items)) == expected


def test_items_are_taken_one_ahead_of_a_group():
    taken = []

    def items() -> Iterator[int]:
        for item in range(5):
            taken.append(item)
            yield item

    groups = group_by_budget(items(), lambda _: 1.0, 2)
    assert next(groups) == [0, 1] and taken == [0, 1, 2]
