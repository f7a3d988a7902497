"""What every teacher family answers. Stages see only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from schemas.bucket import Bucket
from schemas.config import LoraConfig
from stages.ladd.backbone import Conditioning


class Adapters(Protocol):
    """Low-rank adapters on one backbone."""

    def off(self) -> AbstractContextManager[None]:
        """Within it the backbone computes as if it had none."""
        ...

    def scale(self, factor: float) -> None:
        """Let them act `factor` times as strongly as they were trained to."""
        ...

    def save(self, folder: Path) -> None:
        """Write them as stock diffusers loads them."""
        ...

    def merge(self) -> None:
        """Fold them into the backbone's own weights, as strongly as they act; they are gone
        then.
        """
        ...


class Teacher(Protocol):
    """A text-to-image rectified-flow model with its text encoders and autoencoder."""

    device: torch.device
    """Where it loads and computes; the CPU until `place` says otherwise."""
    vae_factor: int
    """Pixels along a side for each of a latent's."""
    max_tokens: int
    """Tokens that the first text encoder takes, its marks left out."""

    def check_bucket(self, bucket: Bucket) -> None:
        """Raises ConfigError unless the model can make pictures of this size."""
        ...

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, marks left out, as the first text encoder counts them."""
        ...

    def place(self, device: torch.device) -> None:
        """Load and compute on this device from now on."""
        ...

    def backbone(
        self,
        *,
        dtype: torch.dtype | None = None,
        checkpoint_blocks: bool = False,
        lora: LoraConfig | None = None,
        shard: Callable[[nn.Module], None] | None = None,
    ) -> nn.Module:
        """A new copy of the transformer as a `stages.ladd.backbone.Backbone`; by default in the
        teacher's dtype. With `lora`, adapters that change nothing yet; they alone take gradients.

        `shard` cuts the backbone up while its weights take no memory yet; then each rank loads its
        own shards alone. All ranks call this together.
        """
        ...

    def add_adapters(
        self, backbone: nn.Module, lora: LoraConfig, *, field: str, seed: int
    ) -> Adapters:
        """Freeze a backbone and put float32 adapters on it that change nothing yet; they alone take
        gradients. The same seed gives the same first weights.

        Raises ConfigError naming `field` for a target that names no layer.
        """
        ...

    def load_adapters(self, backbone: nn.Module, folder: Path) -> Adapters:
        """Put the adapters that `Adapters.save` wrote on a backbone that has none."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Float32 conditioning of B prompts; the empty prompt is the unconditional one."""
        ...

    def encode_pictures(self, pictures_BHW3: np.ndarray) -> Tensor:
        """uint8 pictures to shifted and scaled latents (B, C, H, W) float32: mean 0 and deviation
        1, roughly.
        """
        ...

    def decode_latents(self, latents_BCHW: Tensor) -> np.ndarray:
        """Latents as `encode_pictures` makes them to uint8 pictures (B, H, W, 3). NaN
        becomes 0: look at the latents to notice it.
        """
        ...

    def release(self) -> None:
        """Give the memory of text encoders and autoencoder back; what is used again is loaded
        again.
        """
        ...

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """(C, H, W) of a bucket's latents."""
        ...

    def sigmas(self, steps: int, bucket: Bucket) -> list[float]:
        """The teacher's own noise levels for so many steps: from 1 down, and 0 at the end."""
        ...

    def save_student(
        self,
        folder: Path,
        load_weights: Callable[[nn.Module], None],
        grid: Sequence[float],
        *,
        lora: LoraConfig | None = None,
    ) -> None:
        """Write a complete diffusers folder around a student that samples on `grid` in stock
        diffusers.

        `load_weights` fills the fresh backbone that it is given. Adapters are merged, and kept
        beside in the folder `lora`.
        """
        ...

    def student(self) -> tuple[nn.Module, list[float]]:
        """The student that `save_student` wrote into this teacher's folder: its backbone in
        float32, ready to sample, and its sampling grid.

        Raises ArtifactError when the folder holds no student, or not the scheduler that was saved
        with it.
        """
        ...
