"""The student's sampling grid: its noise levels for a number of steps. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")


@dataclass(frozen=True)
class StudentGrid:
    """The noise levels of a student, and how stock diffusers comes to sample at them."""

    levels: tuple[float, ...]
    """Falling from 1. In float32 they are exactly those that diffusers samples at; the student is
    trained at no others.
    """
    shift: float = 1.0
    """`shift` of the scheduler that is saved with the student."""
    terminal: float | None = None
    """`shift_terminal` of that scheduler. None where no scheduler makes the levels: then they are
    handed to the pipeline as its argument `sigmas`.
    """

    def __len__(self) -> int:
        return len(self.levels)


def shifted(level: Level, shift: float) -> Level:
    """A noise level in [0, 1] on the scale of a teacher with shift S: S t / (1 + (S - 1) t) (Esser
    et al. 2024, section 5.3.2). Multiplies the odds t / (1 - t) by S.
    """
    return shift * level / (1 + (shift - 1) * level)


def evenly_spaced(levels: Sequence[float]) -> bool:
    """Whether the levels fall from 1 in equal steps."""
    gaps = max(len(levels) - 1, 1)
    even = [1 - (1 - levels[-1]) * i / gaps for i in range(len(levels))]
    return all(abs(a - b) <= 1e-6 for a, b in zip(levels, even, strict=True))


def student_sigmas(grid: StudentGrid, steps: int) -> list[float]:
    """The noise levels of a student's `steps` steps, one of `step_counts(grid)`: every level, or
    every second one, and so on; [1] for one step.
    """
    assert steps in step_counts(grid)
    if steps == 1:
        return [1.0]
    return list(grid.levels[:: (len(grid) - 1) // (steps - 1)])


def step_counts(grid: Sized) -> list[int]:
    """The numbers of steps, largest first, that use the first level of a grid, the last, and others
    at equal gaps between them: the student was trained on no other levels.
    """
    gaps = len(grid) - 1
    return [n for n in range(len(grid), 0, -1) if n == 1 or gaps % (n - 1) == 0]


def steps_title(steps: int) -> str:
    """The number of steps in words for display: `4 steps`, `1 step`."""
    return "1 step" if steps == 1 else f"{steps} steps"
