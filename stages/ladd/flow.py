"""Rectified flow, and the noise levels that LADD draws.

`x_t = (1 - t) x0 + t eps` with t = sigma in [0, 1]; velocity `v = eps - x0`; clean estimate `x0 =
x_t - t v` (Liu et al. 2022; Esser et al. 2024, section 2). Legend in `backbone.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.config import RenoiseConfig, StudentTimeConfig


def add_noise(x0_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Put clean latents on the flow at noise level `sigma_B` in [0, 1]: (B, C, H, W), dtype of
    `x0_BCHW`.

    Raises ValueError for a level outside [0, 1].
    """
    if sigma_B.min() < 0 or sigma_B.max() > 1:
        raise ValueError("sigma must lie in [0, 1]")
    sigma = _over_pixels(sigma_B, x0_BCHW)
    return (1 - sigma) * x0_BCHW + sigma * noise_BCHW


def clean_estimate(x_BCHW: Tensor, velocity_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean latents that a velocity at noise level `sigma_B` points to: (B, C, H, W)."""
    return x_BCHW - _over_pixels(sigma_B, x_BCHW) * velocity_BCHW


def _over_pixels(sigma_B: Tensor, like_BCHW: Tensor) -> Tensor:
    return sigma_B.to(like_BCHW.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Draws:
    """All randomness of one update, a row a sample."""

    student_sigma_B: Tensor
    student_noise_BCHW: Tensor
    renoise_sigma_B: Tensor
    renoise_noise_BCHW: Tensor

    def to(self, device: torch.device | str) -> Draws:
        return Draws(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def draw(
    seed: int,
    step: int,
    slots: range,
    shape_CHW: torch.Size,
    time: StudentTimeConfig,
    renoise: RenoiseConfig,
    *,
    student_step: int,
) -> Draws:
    """Noise and noise levels for the samples `slots` of the global batch of update `step`.

    A sample's draws depend on seed, step and slot alone: two ranks never draw alike, and the number
    of ranks does not matter. Student levels follow LADD's section 4, its warm-up counted in
    `student_step`; the discriminator's level is `sigmoid(N(mean, std))` (section 3.2).
    """
    warm = student_step >= time.warmup_steps
    probabilities = torch.tensor(time.probabilities if warm else time.warmup_probabilities)
    grid = torch.tensor(time.grid)
    rows = []
    for slot in slots:
        generator = torch.Generator().manual_seed(_seed_of(seed, step, slot))
        level = torch.multinomial(probabilities, 1, generator=generator)
        student_noise = torch.randn(shape_CHW, generator=generator)
        renoise_level = torch.randn(1, generator=generator) * renoise.std + renoise.mean
        rows.append(
            (
                grid[level],
                student_noise,
                renoise_level.sigmoid(),
                torch.randn(shape_CHW, generator=generator),
            )
        )
    levels, noises, renoise_levels, renoise_noises = zip(*rows, strict=True)
    return Draws(
        torch.cat(levels),
        torch.stack(noises),
        torch.cat(renoise_levels),
        torch.stack(renoise_noises),
    )


def _seed_of(*parts: int) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
