"""What every teacher family answers. Stages see only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from schemas.bucket import Bucket
from schemas.config import LoraConfig
from stages.ladd.backbone import Conditioning


class Teacher(Protocol):
    """A text-to-image rectified-flow model with its text encoders and autoencoder."""

    unit: int
    """Sides of a bucket must be multiples of this: VAE factor times patch size, in pixels."""
    latent_channels: int
    max_tokens: int
    """Tokens that the first text encoder takes, its marks left out."""

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
    ) -> nn.Module:
        """A new copy of the transformer as a `stages.ladd.backbone.Backbone`; by default in the
        teacher's dtype. With `lora`, adapters that change nothing yet; they alone take gradients.
        """
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
