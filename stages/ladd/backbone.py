"""The interface LADD needs from a transformer: its velocity, and a feature map per attention block.

Legend for this package: B batch, C latent channels, H and W latent height and width, D block width,
h and w token rows and columns, L text tokens, P pooled width, K taps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """The text conditioning of a batch of prompts.

    `tokens_BLD` is the text sequence, `pooled_BP` the pooled embedding. SD3 without T5 appends rows
    of zeros (256 of them). They are all equal, so `null_tokens` counts them and they are never
    stored.
    """

    tokens_BLD: Tensor
    pooled_BP: Tensor
    null_tokens: int = 0

    @property
    def text_tokens(self) -> int:
        """Rows of text that the transformer computes: all null tokens are one."""
        return self.tokens_BLD.shape[1] + (self.null_tokens > 0)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        return Conditioning(
            self.tokens_BLD.to(device, dtype), self.pooled_BP.to(device, dtype), self.null_tokens
        )

    def select(self, rows: Tensor | slice | Sequence[int]) -> Conditioning:
        return Conditioning(self.tokens_BLD[rows], self.pooled_BP[rows], self.null_tokens)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Stack along the batch. All parts must have the same number of null tokens."""
        assert len({part.null_tokens for part in parts}) == 1
        return Conditioning(
            torch.cat([part.tokens_BLD for part in parts]),
            torch.cat([part.pooled_BP for part in parts]),
            parts[0].null_tokens,
        )


class Backbone(nn.Module):
    """A rectified-flow transformer, teacher or student; a teacher family derives its own from this.
    It computes the same in training and in evaluation mode.

    Flow: `x_t = (1 - t) x0 + t eps` with t = sigma in [0, 1], sigma = 1 pure noise; velocity `eps -
    x0`.
    """

    tap_widths: list[int]
    """D of each attention block, in block order. The discriminator's heads are built from it."""
    blocks: nn.ModuleList
    """The attention blocks: the units that are compiled, sharded and checkpointed."""
    checkpoint_blocks: bool
    """Activation checkpointing: recompute each block in the backward pass."""

    def velocity(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        """The predicted velocity (B, C, H, W) at noise level `sigma_B` in [0, 1]. Blocks whose
        index is in `skip_layers` pass on what they are given.
        """
        raise NotImplementedError

    def features(
        self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> list[Tensor]:
        """The image tokens after every attention block, as contiguous maps (B, D, h, w) in the
        latent's true shape, not a square.

        Does not run the layers after the last block. Gradient reaches `latents_BCHW`.
        """
        raise NotImplementedError


class WithoutAdapters(Backbone):
    """What a backbone computes with its adapters off: the frozen net that they were put on, as a
    view of the same weights. `off` is the adapters' `Adapters.off`.

    The weights are the adapted net's, which trains them: `train`, `eval` and `requires_grad_` of
    the view do nothing.
    """

    def __init__(self, adapted: Backbone, off: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.adapted, self.off = adapted, off
        self.tap_widths = adapted.tap_widths

    def velocity(
        self,
        latents_BCHW: Tensor,
        sigma_B: Tensor,
        conditioning: Conditioning,
        *,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        with self.off():
            return self.adapted.velocity(
                latents_BCHW, sigma_B, conditioning, skip_layers=skip_layers
            )

    def features(
        self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> list[Tensor]:
        with self.off():
            return self.adapted.features(latents_BCHW, sigma_B, conditioning)

    def train(self, mode: bool = True) -> Self:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return self
