"""Samplers as free functions: the guided flow for the teacher, consistency for the student.

Each picture's noise comes from its own generator, so a sample does not depend on its batch. Legend
in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Solver(Protocol):
    """Integrates the flow of one batch from noise to latents, step by step. It may keep state, so
    every batch needs a new one.
    """

    @property
    def levels(self) -> Sequence[float]:
        """The noise level that the model is told in each step, falling, in [0, 1]."""
        ...

    def step(self, index: int, x_BCHW: Tensor, velocity_BCHW: Tensor) -> Tensor:
        """The latents (B, C, H, W) float32 after step `index`; steps come in order, from 0."""
        ...


class Euler:
    """A `Solver`: Euler steps over `sigmas`, which fall from 1 to 0."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.levels = list(sigmas[:-1])
        self._sigmas = list(sigmas)

    def step(self, index: int, x_BCHW: Tensor, velocity_BCHW: Tensor) -> Tensor:
        return x_BCHW + (self._sigmas[index + 1] - self._sigmas[index]) * velocity_BCHW


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022), and skip-layer guidance on top of it.

    With v the velocity with the prompt, u the unconditional one, and s the one with the prompt from
    a pass that leaves out `skip_layers`: `u + scale (v - u)` in `steps`, and in those that are also
    in `skip_steps`, `u + scale (v - u) + skip_scale (v - s)`. In other steps v alone is computed.
    """

    unconditional: Conditioning
    """One row, or B rows; a negative prompt takes its place."""
    scale: float | Tensor
    """Above 1; (B, 1, 1, 1) float32 if each sample has its own."""
    steps: Collection[int]
    skip_layers: Collection[int] = ()
    """Indices of `Backbone.blocks`."""
    skip_scale: float = 0.0
    skip_steps: Collection[int] = ()


@torch.no_grad()
def sample_flow(
    teacher: Backbone,
    noise_BCHW: Tensor,
    conditioning: Conditioning,
    solver: Solver,
    guidance: Guidance | None = None,
) -> Tensor:
    """Integrate the flow from noise to latents (B, C, H, W) float32."""
    x = noise_BCHW
    both = conditioning if guidance is None else _with_unconditional(conditioning, guidance)
    for step, sigma in enumerate(solver.levels):
        level = torch.full((len(x),), sigma, device=x.device)
        if guidance is None or step not in guidance.steps:
            velocity = teacher.velocity(x, level, conditioning).float()
        else:
            twice = teacher.velocity(torch.cat([x, x]), level.repeat(2), both)
            without, told = twice.float().chunk(2)
            velocity = without + guidance.scale * (told - without)
            if step in guidance.skip_steps:
                layers = guidance.skip_layers
                skipped = teacher.velocity(x, level, conditioning, skip_layers=layers).float()
                velocity = velocity + guidance.skip_scale * (told - skipped)
        x = solver.step(step, x, velocity)
    return x


def _with_unconditional(conditioning: Conditioning, guidance: Guidance) -> Conditioning:
    unconditional, batch = guidance.unconditional, len(conditioning.pooled_BP)
    if len(unconditional.pooled_BP) == 1:
        unconditional = unconditional.select([0] * batch)
    return Conditioning.cat([unconditional, conditioning])


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
