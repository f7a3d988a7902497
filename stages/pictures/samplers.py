"""Samplers: make the latents of planned samples with the teacher, as `synthesize` says, or with a
student on its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from schemas.bucket import Bucket
from schemas.config import SynthesizeConfig
from schemas.errors import ConfigError
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.precision import autocast
from stages.ladd.sampling import Guidance, initial_noise, sample_consistency, sample_flow
from stages.teachers.protocol import Teacher
from stages.texts.identity import hash_fraction

PlannedSample = dict[str, Any]
"""One picture to sample: at least `prompt`, `seed`, `width` and `height`. The picture depends only
on these.
"""
Sampler = Callable[[Sequence[PlannedSample]], Tensor]
"""Maps samples of one bucket to final latents (B, C, H, W) float32, on the backbone's device."""
PromptEncoder = Callable[[Sequence[str]], Conditioning]


def remembering(encode: PromptEncoder) -> PromptEncoder:
    """Encode each batch of prompts once and keep it in host memory, so that text encoders that were
    released are not loaded again for prompts that come again.
    """
    kept: dict[tuple[str, ...], Conditioning] = {}

    def encode_once(prompts: Sequence[str]) -> Conditioning:
        batch = tuple(prompts)
        if batch not in kept:
            encoded = encode(prompts)
            kept[batch] = encoded.to("cpu")
            return encoded
        return kept[batch]

    return encode_once


def teacher_sampler(
    teacher: Teacher,
    backbone: Backbone,
    device: torch.device,
    how: SynthesizeConfig,
    encode: PromptEncoder | None = None,
) -> Sampler:
    """The teacher as a configuration samples it; a bfloat16 backbone computes under autocast.
    `encode` takes the place of the teacher's own.

    Raises ConfigError for a block to skip that the teacher does not have.
    """
    encode = encode or teacher.encode_prompts
    unconditional = encode([how.negative_prompt]).to(device)
    skip, blocks = how.skip_layer_guidance, len(backbone.tap_widths)
    if skip is not None and max(skip.layers) >= blocks:
        raise ConfigError(
            f"synthesize.skip_layer_guidance.layers: the teacher has no block {max(skip.layers)}, "
            f"its blocks are 0 to {blocks - 1}"
        )

    def draw(samples: Sequence[PlannedSample]) -> Tensor:
        noise, _, conditioning, bucket = _start(teacher, samples, device, encode)
        guidance = None
        if how.is_guided:
            scales = [guidance_scale_of(sample, how) for sample in samples]
            guidance = Guidance(
                unconditional,
                torch.tensor(scales, device=device).view(-1, 1, 1, 1),
                how.guided_steps,
                skip.layers if skip else (),
                skip.scale if skip else 0.0,
                how.skip_layer_steps,
            )
        solver = teacher.solver(how.sampler, how.steps, bucket)
        in_bfloat16 = next(backbone.parameters()).dtype == torch.bfloat16
        with autocast(device, enabled=in_bfloat16):
            return sample_flow(backbone, noise, conditioning, solver, guidance)

    return draw


def guidance_scale_of(sample: PlannedSample, how: SynthesizeConfig) -> float:
    """The scale at which a sample is guided: with a range, drawn evenly from its seed alone."""
    if how.guidance_range is None:
        return how.guidance_scale
    low, high = how.guidance_range
    return low + (high - low) * hash_fraction(str(sample["seed"]), "guidance")


def student_sampler(
    teacher: Teacher,
    backbone: Backbone,
    device: torch.device,
    sigmas: Sequence[float],
    *,
    bfloat16: bool = True,
    encode: PromptEncoder | None = None,
) -> Sampler:
    """The student's consistency sampler over `sigmas`; the teacher encodes the prompts, unless
    `encode` does.
    """
    encode = encode or teacher.encode_prompts

    def draw(samples: Sequence[PlannedSample]) -> Tensor:
        noise, generators, conditioning, _ = _start(teacher, samples, device, encode)
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
    teacher: Teacher,
    samples: Sequence[PlannedSample],
    device: torch.device,
    encode: PromptEncoder,
) -> tuple[Tensor, list[torch.Generator], Conditioning, Bucket]:
    bucket = Bucket(samples[0]["width"], samples[0]["height"])
    noise, generators = initial_noise([s["seed"] for s in samples], teacher.latent_shape(bucket))
    conditioning = encode([s["prompt"] for s in samples]).to(device)
    return noise.to(device), generators, conditioning, bucket
