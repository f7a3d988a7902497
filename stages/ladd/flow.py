"""Rectified flow, and the noise levels that LADD draws.

`x_t = (1 - t) x0 + t eps` with t = sigma in [0, 1]; velocity `v = eps - x0`; clean estimate `x0 =
x_t - t v` (Liu et al. 2022; Esser et al. 2024, section 2). Legend in `backbone.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from schemas.config import RenoiseConfig, StudentTimeConfig
from stages.ladd.grid import shifted


def add_noise(x0_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Noise clean latents to level `sigma_B` in [0, 1]: (B, C, H, W), in the dtype of `x0_BCHW`."""
    sigma = _over_pixels(sigma_B, x0_BCHW)
    return (1 - sigma) * x0_BCHW + sigma * noise_BCHW


def clean_estimate(x_BCHW: Tensor, velocity_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean latents that a velocity at noise level `sigma_B` points to: (B, C, H, W)."""
    return x_BCHW - _over_pixels(sigma_B, x_BCHW) * velocity_BCHW


def _over_pixels(sigma_B: Tensor, like_BCHW: Tensor) -> Tensor:
    return sigma_B.to(like_BCHW.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Draws:
    """All randomness of one update, one row per sample. A field is None if its option is off."""

    student_sigma_B: Tensor
    student_noise_BCHW: Tensor
    renoise_sigma_B: Tensor
    renoise_noise_BCHW: Tensor
    near_noise_BCHW: Tensor | None = None
    """For the approximate R1 penalty."""
    rolls_out_B: Tensor | None = None
    """Whether a sample's input comes from the student's own earlier sampling steps."""
    rollout_noise_BKCHW: Tensor | None = None
    """One noise for each level of the grid but the last."""

    def to(self, device: torch.device | str) -> Draws:
        return self._each(lambda tensor: tensor.to(device))

    def select(self, rows: slice) -> Draws:
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Draws(**{n: change(value) for n, value in values.items() if value is not None})


def draw(
    seed: int,
    step: int,
    slots: range,
    shape_CHW: torch.Size,
    time: StudentTimeConfig,
    renoise: RenoiseConfig,
    *,
    student_step: int,
    near: bool = False,
) -> Draws:
    """Noise and noise levels for the samples `slots` of the global batch of update `step`.

    A sample's draws depend only on seed, step and slot: two ranks never draw the same noise, and
    the number of ranks does not matter. Student levels follow LADD's section 4, with the warm-up
    counted in `student_step`: those of `time.grid` as they stand. The discriminator's level is
    `sigmoid(N(mean, std))` (section 3.2), shifted. The method knows no teacher's shift: an empty
    one is none here, and `time.shift` is not read (`distill_loop.py` puts both in). `near` adds the
    noise for the R1 penalty.
    """
    warm = student_step >= time.warmup_steps
    probabilities = torch.tensor(time.probabilities if warm else time.warmup_probabilities)
    grid = torch.tensor(time.grid)
    rows = []
    for slot in slots:
        generator = torch.Generator().manual_seed(draw_seed(seed, step, slot))

        def noise(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn((*shape, *shape_CHW), generator=generator)

        row = Draws(
            grid[torch.multinomial(probabilities, 1, generator=generator)[0]],
            noise(),
            _renoise_level(renoise, generator),
            noise(),
        )
        if near:
            row = replace(row, near_noise_BCHW=noise())
        if time.rollout > 0:
            row = replace(
                row,
                rolls_out_B=torch.rand((), generator=generator) < time.rollout,
                rollout_noise_BKCHW=noise(len(grid) - 1),
            )
        rows.append(row)
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Draws)}
    return Draws(**{n: torch.stack(c) for n, c in columns.items() if c[0] is not None})


def _renoise_level(config: RenoiseConfig, generator: torch.Generator) -> Tensor:
    if config.distribution == "uniform":
        level = torch.rand((), generator=generator)
    else:
        level = (torch.randn((), generator=generator) * config.std + config.mean).sigmoid()
    return shifted(level, config.shift or 1.0)


def draw_seed(*parts: int | str) -> int:
    """A 63-bit seed for one generator, different for each sequence of parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
