"""What LADD asks of a transformer: a velocity, and the feature maps behind its attention blocks.

Legend for this package: B batch, C latent channels, H and W latent height and width, D block width,
h and w token rows and columns, L text tokens, P pooled width, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What a batch of prompts says to the transformer.

    `tokens_BLD` is the text sequence, `pooled_BP` the pooled embedding. SD3 without T5 appends rows
    of zeros (256 of them); they are all alike, so they are counted in `null_tokens` and never
    stored.
    """

    tokens_BLD: Tensor
    pooled_BP: Tensor
    null_tokens: int = 0

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


class Backbone(Protocol):
    """A rectified-flow transformer, teacher or student.

    Flow: `x_t = (1 - t) x0 + t eps` with t = sigma in [0, 1], sigma = 1 pure noise; velocity `eps -
    x0`.
    """

    tap_widths: list[int]
    """D of each attention block, in block order: what the discriminator's heads are built for."""

    def velocity(self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The predicted velocity (B, C, H, W) at noise level `sigma_B` in [0, 1]."""
        ...

    def features(
        self, latents_BCHW: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> list[Tensor]:
        """Image tokens behind every attention block as contiguous maps (B, D, h, w) of the latent's
        true shape.

        Runs no layer behind the last block. Gradient reaches `latents_BCHW`.
        """
        ...
