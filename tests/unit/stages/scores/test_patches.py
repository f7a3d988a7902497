"""How pictures are cut into patches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.scores.patches import patch_side, patches_of


@given(
    batch=st.integers(1, 3),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    side=st.integers(8, 16),
)
def test_patches_are_cut_from_the_middle_and_do_not_overlap(batch, height, width, side):
    numbers = np.arange(batch * height * width).reshape(batch, height, width, 1).repeat(3, -1)
    grid = patches_of(numbers, side)
    top, left = height % side // 2, width % side // 2
    assert grid[0, 0, 0, 0] == top * width + left
    assert grid.shape == (batch * (height // side) * (width // side), side, side, 3)
    assert len(np.unique(grid)) == grid[..., 0].size
    assert (grid[0, :, 1:] - grid[0, :, :-1] == 1).all()
    assert (grid[0, 1:] - grid[0, :-1] == width).all()


def test_side_of_patches():
    assert [patch_side(*size) for size in [(1024, 1024), (64, 64), (96, 40)]] == [299, 32, 16]
    assert patches_of(np.zeros((2, 48, 80, 3))).shape == (12, 24, 24, 3)


TOO_FEW = r"needs? (at least|more)|too small|need more"


def test_pictures_too_small_for_patches_are_said_so():
    with pytest.raises(ValueError, match=TOO_FEW):
        patch_side(100, 15)
