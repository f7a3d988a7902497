"""In how many steps a student draws."""

from __future__ import annotations

import pytest

from stages.ladd.grid import step_counts, student_sigmas

GRIDS = {4: [4, 2, 1], 5: [5, 3, 2, 1], 3: [3, 2, 1], 2: [2, 1], 1: [1]}


def grid_of(levels: int) -> list[float]:
    return [1 - 0.2 * i for i in range(levels)]


@pytest.mark.parametrize(("levels", "counts"), GRIDS.items())
def test_a_student_takes_the_numbers_of_steps_that_stay_on_its_grid(levels, counts):
    grid = grid_of(levels)
    assert step_counts(grid) == counts
    for n in range(1, levels + 1):
        off = [s for s in student_sigmas(grid, n) if min(abs(s - g) for g in grid) > 1e-6]
        assert (not off) == (n in counts)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [1.0]), (2, [1.0, 0.25]), (4, [1.0, 0.75, 0.5, 0.25])]
)
def test_student_grid(steps, expected):
    assert student_sigmas([1.0, 0.75, 0.5, 0.25], steps) == pytest.approx(expected)
