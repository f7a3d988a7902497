"""In how many steps a student draws, and at which noise levels."""

from __future__ import annotations

import pytest

from stages.ladd.grid import StudentGrid, evenly_spaced, shifted, step_counts, student_sigmas

GRIDS = {4: [4, 2, 1], 5: [5, 3, 2, 1], 3: [3, 2, 1], 2: [2, 1], 1: [1]}


@pytest.mark.parametrize(("levels", "counts"), GRIDS.items())
def test_a_student_takes_the_numbers_of_steps_that_stay_on_its_grid(levels, counts):
    grid = StudentGrid(tuple(0.9**i for i in range(levels)))
    assert step_counts(grid) == counts
    for n in counts:
        sigmas = student_sigmas(grid, n)
        places = [grid.levels.index(sigma) for sigma in sigmas]
        gap = (levels - 1) // max(n - 1, 1)
        assert places == ([0] if n == 1 else [i * gap for i in range(n)])


def test_a_shift_multiplies_the_odds():
    for level in (0.1, 0.5, 0.9):
        moved = shifted(level, 3.0)
        assert moved / (1 - moved) == pytest.approx(3 * level / (1 - level))
    assert [shifted(level, 1.0) for level in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]
    assert (shifted(0.0, 3.0), shifted(1.0, 3.0)) == (0.0, 1.0)


def test_only_equal_steps_from_one_are_even():
    assert all(map(evenly_spaced, ([1.0, 0.75, 0.5, 0.25], [1.0, 0.2], [1.0])))
    assert not evenly_spaced([1.0, 0.9, 0.5, 0.25])
