"""Crops for patch-FID: a Fréchet distance between full-resolution crops sees the texture that
resizing to a network's input hides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 299
"""Side in pixels of Inception's input and of SDXL-Lightning's crop (Lin et al. 2024)."""


def patches_of(pictures_BHW3: np.ndarray, side: int | None = None) -> np.ndarray:
    """Cut each picture into a centred grid of N crops without overlap: (B * N, side, side, 3).

    The crops of one picture are consecutive. `side` defaults to `patch_side`.
    """
    batch, height, width, _ = pictures_BHW3.shape
    side = side or patch_side(height, width)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    inner = pictures_BHW3[:, top : top + rows * side, left : left + columns * side]
    cells = inner.reshape(batch, rows, side, columns, side, 3).swapaxes(2, 3)
    return cells.reshape(batch * rows * columns, side, side, 3)


def patch_side(height: int, width: int) -> int:
    """Half the shorter side of a picture, rounded down to a multiple of 8, at most 299.

    Pictures of 1024 x 1024 give crops of 299, the shapes world's 64 x 64 pictures crops of 32.
    Raises ValueError for sides under 16.
    """
    if min(height, width) < 16:
        raise ValueError(f"pictures of {width}x{height} are too small for crops")
    return min(_LARGEST, min(height, width) // 16 * 8)
