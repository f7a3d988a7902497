"""What a teacher's parts cost, from geometry alone. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from schemas.bucket import Bucket

if TYPE_CHECKING:
    from schemas.config import DistillConfig, LoraConfig, PipelineConfig


class ModelCosts(Protocol):
    """Operations (a multiply-add is two), bytes and numbers of one model. A family provides it as
    `Family.costs`.
    """

    @property
    def name(self) -> str:
        """What tells models of different geometry apart."""

    @property
    def blocks(self) -> int:
        """Layers of the transformer that run one after another."""

    def forward(self, bucket: Bucket) -> float:
        """Operations of a pass through the transformer, for one sample."""

    def heads(self, distill: DistillConfig, bucket: Bucket) -> float:
        """Operations of a pass through all heads of the discriminator, for one sample."""

    def text(self) -> float:
        """Operations of the text encoders, for one prompt."""

    def decoding(self, bucket: Bucket) -> float:
        """Operations that make a picture of latents."""

    def encoding(self, bucket: Bucket) -> float:
        """Operations that make latents of a picture."""

    def latents(self, bucket: Bucket) -> int:
        """Numbers in the latents of a picture."""

    def embedding(self) -> int:
        """Numbers that are stored for one prompt."""

    def padding(self) -> int:
        """How many of these are zero for every prompt."""

    def folder_bytes(self) -> int:
        """Bytes of a complete folder with the model, as a student is saved."""

    def text_bytes(self) -> int:
        """Bytes of the text encoders on a device."""

    def sampling_bytes(self, bucket: Bucket, pictures: int, *, in_float32: bool = False) -> int:
        """Bytes on a device that samples and decodes `pictures` together, with weights in the
        teacher's dtype or in float32.
        """

    def training_bytes(self, config: PipelineConfig) -> int:
        """Bytes of `distill` on each worker's device, without text encoders."""

    def tuning_bytes(self, config: PipelineConfig) -> int:
        """Bytes of `dpo`'s updates on each worker's device, without text encoders."""

    def checkpoint_bytes(self, distill: DistillConfig) -> int:
        """Bytes of one checkpoint of `distill`."""

    def adapter_bytes(self, lora: LoraConfig) -> int:
        """Bytes of adapters, as they are saved."""
