"""Samplers as free functions: Euler with guidance for the teacher, consistency for the student.

Each picture's noise comes from its own generator, so a sample does not depend on its batch. Legend
in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import add_noise, clean_estimate


def initial_noise(
    seeds: Sequence[int], shape_CHW: Sequence[int]
) -> tuple[Tensor, list[torch.Generator]]:
    """Noise (B, C, H, W) float32 on the CPU, and one generator per seed for drawing further
    noise.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _noise(generators, shape_CHW), generators


def _noise(generators: Sequence[torch.Generator], shape_CHW: Sequence[int]) -> Tensor:
    return torch.stack(
        [torch.randn(tuple(shape_CHW), generator=generator) for generator in generators]
    )


@torch.no_grad()
def sample_euler(
    teacher: Backbone,
    noise_BCHW: Tensor,
    conditioning: Conditioning,
    sigmas: Sequence[float],
    *,
    guidance_scale: float = 1.0,
    unconditional: Conditioning | None = None,
) -> Tensor:
    """Integrate the flow from noise to latents (B, C, H, W) with Euler steps.

    `sigmas` falls from 1 to 0. A `guidance_scale` above 1 (Ho and Salimans 2022) requires
    `unconditional`, with one row or B rows.
    """
    x = noise_BCHW
    batch = len(x)
    if guidance_scale > 1:
        assert unconditional is not None
        if len(unconditional.pooled_BP) == 1:
            unconditional = unconditional.select([0] * batch)
        conditioning = Conditioning.cat([unconditional, conditioning])
    for sigma, following in pairwise(sigmas):
        if guidance_scale > 1:
            level = torch.full((2 * batch,), sigma, device=x.device)
            without, with_prompt = (
                teacher.velocity(torch.cat([x, x]), level, conditioning).float().chunk(2)
            )
            velocity = without + guidance_scale * (with_prompt - without)
        else:
            velocity = teacher.velocity(
                x, torch.full((batch,), sigma, device=x.device), conditioning
            ).float()
        x = x + (following - sigma) * velocity
    return x


@torch.no_grad()
def sample_consistency(
    student: Backbone,
    noise_BCHW: Tensor,
    conditioning: Conditioning,
    sigmas: Sequence[float],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Jump to the clean estimate, noise it with fresh noise to the next level, and repeat (Song et
    al. 2023, algorithm 1): (B, C, H, W).
    """
    x = noise_BCHW
    for i, sigma in enumerate(sigmas):
        level = torch.full((len(x),), sigma, device=x.device)
        if i > 0:
            x = add_noise(x, _noise(generators, x.shape[1:]).to(x), level)
        x = clean_estimate(x, student.velocity(x, level, conditioning).float(), level)
    return x
