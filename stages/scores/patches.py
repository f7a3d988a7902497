"""Crops for patch-FID: a Fréchet distance between crops in full resolution sees the texture that
resizing to a network's input hides.
"""

from __future__ import annotations

import numpy as np

_LARGEST = 299
"""Pixels; Inception's input, and the crop of SDXL-Lightning (Lin et al. 2024)."""


def patches_of(pictures_BHW3: np.ndarray, side: int | None = None) -> np.ndarray:
    """(B * N, side, side, 3): all N crops of a grid in the middle of each picture that do not
    overlap, the crops of a picture in a row; by default of `patch_side`.
    """
    batch, height, width, _ = pictures_BHW3.shape
    side = side or patch_side(height, width)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    inner = pictures_BHW3[:, top : top + rows * side, left : left + columns * side]
    cells = inner.reshape(batch, rows, side, columns, side, 3).swapaxes(2, 3)
    return cells.reshape(batch * rows * columns, side, side, 3)


def centre_patches(pictures_BHW3: np.ndarray, side: int | None = None) -> np.ndarray:
    """(B, side, side, 3): one crop from the middle of each picture, as SDXL-Lightning takes it."""
    height, width = pictures_BHW3.shape[1:3]
    side = side or patch_side(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures_BHW3[:, top : top + side, left : left + side]


def patch_side(height: int, width: int) -> int:
    """Half the shorter side of a picture in whole steps of 8, at most 299: pictures of 1024 x 1024
    give crops of 299, and the 64 x 64 ones of the shapes world of 32.

    Raises ValueError for sides under 16.
    """
    if min(height, width) < 16:
        raise ValueError(f"pictures of {width}x{height} are too small for crops")
    return min(_LARGEST, min(height, width) // 16 * 8)
