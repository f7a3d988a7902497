"""The interface that every teacher family implements. Stages see only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from schemas.bucket import Bucket
from schemas.config import LoraConfig, SamplerName, StudentTimeConfig
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.grid import StudentGrid
from stages.ladd.sampling import Solver


class Adapters(Protocol):
    """Low-rank adapters on one backbone."""

    def off(self) -> AbstractContextManager[None]:
        """A context in which the backbone computes as if it had no adapters. The backward pass of
        what is computed in it may run outside of it, and blocks that it recomputes have none.
        """
        ...

    def scale(self, factor: float) -> None:
        """Set the adapters' strength to `factor` times that of their training."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapters in the format that stock diffusers loads."""
        ...

    def merge(self) -> None:
        """Merge the adapters, at their current strength, into the backbone's weights, and remove
        them.
        """
        ...


class Teacher(Protocol):
    """A text-to-image rectified-flow model with its text encoders and autoencoder."""

    device: torch.device
    """The device it loads on and computes on; the CPU until `place` is called."""
    vae_factor: int
    """Pixels per latent position along one side."""
    max_tokens: int
    """Maximum number of tokens of the first text encoder, without its start and end tokens."""

    def check_bucket(self, bucket: Bucket) -> None:
        """Raise ConfigError unless the model can make pictures of this size."""
        ...

    def count_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt for the first text encoder, without its start and end tokens."""
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
        shard: Callable[[Backbone], None] | None = None,
    ) -> Backbone:
        """A new copy of the transformer as a `stages.ladd.backbone.Backbone`, by default in the
        teacher's dtype. With `lora` it has adapters, initially without effect, and only they take
        gradients.

        `shard` splits the backbone into shards while its weights take no memory yet; then each rank
        loads only its own shards. All ranks call this together.
        """
        ...

    def starting_from(self, folder: Path) -> Teacher:
        """This teacher with the transformer in a folder, which is the transformer's or that of a
        pipeline: what it loads and saves as a student starts there.

        Raises ConfigError naming `distill.init` unless it has the teacher's architecture.
        """
        ...

    def add_adapters(
        self, backbone: Backbone, lora: LoraConfig, *, field: str, seed: int
    ) -> Adapters:
        """Freeze a backbone and put float32 adapters on it, initially without effect. Only they
        take gradients. The same seed gives the same initial weights.

        Raises ConfigError naming `field` for a target that matches no layer.
        """
        ...

    def adapters(self, backbone: Backbone) -> Adapters:
        """The adapters on a backbone that was made with `lora`."""
        ...

    def load_adapters(self, backbone: Backbone, folder: Path) -> Adapters:
        """Put the adapters that `Adapters.save` wrote on a backbone without adapters."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Float32 conditioning of B prompts; the empty prompt is the unconditional one."""
        ...

    def shelve_text_encoders(self) -> None:
        """Move the text encoders to host memory until prompts are encoded again."""
        ...

    def encode_pictures(self, pictures_BHW3: np.ndarray) -> Tensor:
        """Encode uint8 pictures to shifted and scaled latents (B, C, H, W) float32, with mean 0 and
        standard deviation 1, roughly.
        """
        ...

    def decode_latents(self, latents_BCHW: Tensor) -> np.ndarray:
        """Decode latents, as from `encode_pictures`, to uint8 pictures (B, H, W, 3). NaN becomes 0,
        so check the latents to detect it.
        """
        ...

    def release(self) -> None:
        """Free the memory of text encoders and autoencoder; each is loaded again when it is used
        again.
        """
        ...

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """(C, H, W) of a bucket's latents."""
        ...

    def forward_flops(self, bucket: Bucket, text_tokens: int) -> int:
        """Floating-point operations of the transformer's velocity for one sample with so many rows
        of text (`Conditioning.text_tokens`): matrix products and convolutions, a multiply-add as
        two. Counted from the geometry, without weights.
        """
        ...

    def sigmas(self, steps: int, bucket: Bucket) -> list[float]:
        """The teacher's own noise levels for this many steps: falling from 1, with a final 0."""
        ...

    def solver(self, sampler: SamplerName, steps: int, bucket: Bucket) -> Solver:
        """A new solver for one batch, with the teacher's own shift of noise levels; `euler` steps
        over `sigmas`. Raises ConfigError if the teacher has no such sampler.
        """
        ...

    @property
    def shift(self) -> float:
        """The shift S of the noise levels on which the teacher was trained and is sampled, as in
        `stages.ladd.grid.shifted`; 1 for none. Raises ConfigError for a teacher without one shift
        for all sizes of pictures.
        """
        ...

    def student_grid(self, time: StudentTimeConfig) -> StudentGrid:
        """The grid of a student of this teacher, with the teacher's shift unless `time` states one.
        Its levels are exactly those at which stock diffusers will sample the saved student.
        """
        ...

    def save_student(
        self,
        folder: Path,
        load_weights: Callable[[Backbone], None],
        grid: StudentGrid | None = None,
        *,
        lora: LoraConfig | None = None,
    ) -> None:
        """Write a complete diffusers folder for a student that samples on `grid` in stock
        diffusers; without a grid, on that of the student in this teacher's own folder.

        `load_weights` fills the new backbone that it is given. Adapters are merged, and also saved
        separately in the subfolder `lora`.
        """
        ...

    def student(self) -> tuple[Backbone, StudentGrid]:
        """The student that `save_student` wrote to this teacher's folder: its backbone in float32,
        ready to sample, and its sampling grid.

        Raises ArtifactError when the folder holds no student, or a scheduler other than the one
        saved with it.
        """
        ...

    def usage(self, steps: Sequence[int], grid: StudentGrid) -> str:
        """Markdown for the model card: how to draw with a student saved on `grid` in one of
        `steps`.
        """
        ...
