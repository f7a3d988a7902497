"""Samplers: make the latents of planned samples with the teacher and guidance, or with a student on
its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from schemas.bucket import Bucket
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.precision import autocast
from stages.ladd.sampling import initial_noise, sample_consistency, sample_euler
from stages.teachers.protocol import Teacher

PlannedSample = dict[str, Any]
"""One picture to sample: at least `prompt`, `seed`, `width` and `height`. The picture depends only
on these.
"""
Sampler = Callable[[Sequence[PlannedSample]], Tensor]
"""Maps samples of one bucket to final latents (B, C, H, W) float32, on the backbone's device."""


def teacher_sampler(
    teacher: Teacher, backbone: Backbone, device: torch.device, steps: int, guidance_scale: float
) -> Sampler:
    """The teacher's Euler sampler; a bfloat16 backbone computes under autocast."""
    unconditional = teacher.encode_prompts([""])

    def draw(samples: Sequence[PlannedSample]) -> Tensor:
        noise, _, conditioning, bucket = _start(teacher, samples, device)
        in_bfloat16 = next(backbone.parameters()).dtype == torch.bfloat16
        with autocast(device, enabled=in_bfloat16):
            return sample_euler(
                backbone,
                noise,
                conditioning,
                teacher.sigmas(steps, bucket),
                guidance_scale=guidance_scale,
                unconditional=unconditional,
            )

    return draw


def student_sampler(
    teacher: Teacher,
    backbone: Backbone,
    device: torch.device,
    sigmas: Sequence[float],
    *,
    bfloat16: bool = True,
) -> Sampler:
    """The student's consistency sampler over `sigmas`; the teacher encodes the prompts."""

    def draw(samples: Sequence[PlannedSample]) -> Tensor:
        noise, generators, conditioning, _ = _start(teacher, samples, device)
        with autocast(device, enabled=bfloat16):
            return sample_consistency(backbone, noise, conditioning, sigmas, generators)

    return draw


def sample_batches(samples: Sequence[PlannedSample], size: int) -> Iterator[list[PlannedSample]]:
    """Yield the samples in order, in batches of one bucket and at most `size` samples."""
    batch: list[PlannedSample] = []
    for sample in samples:
        changes_bucket = batch and (sample["width"], sample["height"]) != (
            batch[0]["width"],
            batch[0]["height"],
        )
        if changes_bucket or len(batch) == size:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def _start(
    teacher: Teacher, samples: Sequence[PlannedSample], device: torch.device
) -> tuple[Tensor, list[torch.Generator], Conditioning, Bucket]:
    bucket = Bucket(samples[0]["width"], samples[0]["height"])
    noise, generators = initial_noise([s["seed"] for s in samples], teacher.latent_shape(bucket))
    conditioning = teacher.encode_prompts([s["prompt"] for s in samples])
    return noise.to(device), generators, conditioning, bucket
