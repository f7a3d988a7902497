"""Draws the pictures of samples: with the teacher and guidance, or with a student on its own grid.

A sample is a dict with `prompt`, `seed`, `width` and `height`; its noise depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from schemas.bucket import Bucket
from stages.ladd.backbone import Conditioning
from stages.ladd.sampling import initial_noise, sample_consistency, sample_euler
from stages.teachers.protocol import Teacher

Sample = dict[str, Any]
Painter = Callable[[Sequence[Sample]], Tensor]
"""Samples of one bucket to their final latents (B, C, H, W) float32, on the backbone's device."""


def teacher_painter(
    teacher: Teacher, backbone: nn.Module, device: torch.device, steps: int, guidance_scale: float
) -> Painter:
    """The teacher's own sampler; a backbone in bfloat16 computes under autocast."""
    unconditional = teacher.encode_prompts([""])

    def paint(samples: Sequence[Sample]) -> Tensor:
        noise, _, conditioning, bucket = _start(teacher, samples, device)
        with torch.autocast(
            device.type, torch.bfloat16, enabled=next(backbone.parameters()).dtype == torch.bfloat16
        ):
            return sample_euler(
                backbone,
                noise,
                conditioning,
                teacher.sigmas(steps, bucket),
                guidance_scale=guidance_scale,
                unconditional=unconditional,
            )

    return paint


def student_painter(
    teacher: Teacher,
    backbone: nn.Module,
    device: torch.device,
    sigmas: Sequence[float],
    *,
    bfloat16: bool = True,
) -> Painter:
    """The student's consistency sampler over `sigmas`; text and pictures are the teacher's."""

    def paint(samples: Sequence[Sample]) -> Tensor:
        noise, generators, conditioning, _ = _start(teacher, samples, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return sample_consistency(backbone, noise, conditioning, sigmas, generators)

    return paint


def _start(
    teacher: Teacher, samples: Sequence[Sample], device: torch.device
) -> tuple[Tensor, list[torch.Generator], Conditioning, Bucket]:
    bucket = Bucket(samples[0]["width"], samples[0]["height"])
    noise, generators = initial_noise([s["seed"] for s in samples], teacher.latent_shape(bucket))
    conditioning = teacher.encode_prompts([s["prompt"] for s in samples])
    return noise.to(device), generators, conditioning, bucket
