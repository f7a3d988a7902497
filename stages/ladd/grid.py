"""The student's sampling grid: its noise levels for a number of steps. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence


def student_sigmas(grid: Sequence[float], steps: int) -> list[float]:
    """The noise levels of a student's `steps` steps: [1] for one step, else evenly spaced from 1 to
    the grid's last level.

    Stock diffusers computes the same levels from `shift_terminal = grid[-1]`.
    """
    if steps == 1:
        return [1.0]
    return [1 - (1 - grid[-1]) * i / (steps - 1) for i in range(steps)]


def step_counts(grid: Sequence[float]) -> list[int]:
    """The numbers of steps, largest first, that use only levels of the evenly spaced `grid`: the
    student was trained on no other levels.
    """
    gaps = len(grid) - 1
    return [n for n in range(len(grid), 0, -1) if n == 1 or gaps % (n - 1) == 0]


def steps_title(steps: int) -> str:
    """The number of steps in words for display: `4 steps`, `1 step`."""
    return "1 step" if steps == 1 else f"{steps} steps"
