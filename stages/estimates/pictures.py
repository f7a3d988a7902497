"""The work of drawing, encoding and writing pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.base.work import Part
from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from stages.data.token_rows import BLOCK
from stages.teachers.costs import ModelCosts

_SECONDS = {"png": 1.2e-7, "webp": 1.4e-7, "jpg": 4.2e-9}
"""Of one core for a pixel, and ..."""
_BYTES = {"png": 2.2, "webp": 0.55, "jpg": 0.65}
"""... bytes of a pixel, at quality 95: measured on a picture of 1024 x 1024 whose spectrum falls as
that of photographs, with the power 1.2 of the frequency. Flat pictures take a tenth.
"""
MEMBERS_BYTES = 3000.0
"""Of a sample in a tar beside its picture: text, record and headers."""


def mean(config: PipelineConfig, of: Callable[[Bucket], float]) -> float:
    """Return the mean over the buckets, by their weights."""
    weights = {Bucket.parse(name): weight for name, weight in config.prompts.buckets.items()}
    return sum(of(bucket) * weight for bucket, weight in weights.items()) / sum(weights.values())


def largest(config: PipelineConfig) -> Bucket:
    return max(config.prompts.bucket_list(), key=pixels)


def pixels(bucket: Bucket) -> int:
    return bucket.width * bucket.height


def drawn(
    config: PipelineConfig, costs: ModelCosts, pictures: float, passes: float, micro_batch: int
) -> tuple[Part, ...]:
    """Pictures that take so many passes of the transformer each, decoded: their prompts are encoded
    with every micro-batch.
    """
    batches = pictures / micro_batch
    return (
        Part(
            "sampling",
            pictures * passes * mean(config, costs.forward),
            batches * passes * costs.blocks,
        ),
        Part("text", pictures * costs.text(), batches * 2 * costs.blocks),
        Part("pixels", pictures * mean(config, costs.decoding), batches * costs.blocks),
    )


def embedding_bytes(config: PipelineConfig, costs: ModelCosts) -> float:
    """Bytes of a prompt's embeddings in the store."""
    encode = config.encode
    if encode.embeddings != "stored":
        return 0.0
    number: float = 2 if encode.dtype == "float16" else 4
    if encode.embedding_format == "whole":
        return number * costs.embedding()
    if encode.embedding_format == "packed_8bit":
        number = 1 + 2 / BLOCK
    return number * (costs.embedding() - costs.padding())


def encoded(
    config: PipelineConfig, costs: ModelCosts, pictures: float, micro_batch: int
) -> tuple[Part, ...]:
    """Pictures that the autoencoder makes latents of."""
    calls = pictures / micro_batch * costs.blocks
    return (Part("pixels", pictures * mean(config, costs.encoding), calls),)


def writing_seconds(config: PipelineConfig, pictures: float, image_format: str) -> float:
    """Seconds in which one core writes the pictures in a format."""
    return pictures * _SECONDS[image_format] * mean(config, pixels)


def file_bytes(config: PipelineConfig, image_format: str) -> float:
    """Bytes of a picture in a format."""
    return _BYTES[image_format] * mean(config, pixels)


def latent_bytes(config: PipelineConfig, costs: ModelCosts | None, number: int = 2) -> float:
    """Bytes of a picture's latents, `number` for each value."""
    return 0.0 if costs is None else number * mean(config, costs.latents)


def pair_bytes(config: PipelineConfig, costs: ModelCosts) -> float:
    """Bytes of a preference pair in the store: two pictures with their latents."""
    return 2 * (file_bytes(config, "png") + latent_bytes(config, costs)) + MEMBERS_BYTES


def sum_of(*parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return one part for each kind."""
    found: dict[str, Part] = {}
    for part in (part for group in parts for part in group):
        before = found.get(part.kind)
        if before is not None:
            part = replace(part, flops=part.flops + before.flops, calls=part.calls + before.calls)
        found[part.kind] = part
    return tuple(found.values())
