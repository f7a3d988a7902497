"""Discriminator heads: a small 2D-convolutional net per attention block of the frozen teacher.

LADD, section 3.1: independent heads on each block's generative features, conditioned on noise level
and pooled text (a projection discriminator, Miyato and Koyama 2018); a logit at every position.
Legend in `backbone.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.config import DiscriminatorConfig


class DiscriminatorHeads(nn.Module):
    """One `Head` per tap, or only one for the last tap if `config.taps` is `last`."""

    def __init__(
        self, tap_widths: Sequence[int], pooled_width: int, config: DiscriminatorConfig
    ) -> None:
        super().__init__()
        self.last_only = config.taps == "last"
        widths = tap_widths[-1:] if self.last_only else tap_widths
        self.heads = nn.ModuleList([Head(width, pooled_width, config) for width in widths])

    def forward(
        self, features: Sequence[Tensor], sigma_B: Tensor, pooled_BP: Tensor
    ) -> list[Tensor]:
        """Logits (B, h, w) float32 of each head; above 0 means real. `features` has one map per
        tap, `sigma_B` is their noise level.
        """
        if self.last_only:
            features = features[-1:]
        assert len(features) == len(self.heads)
        return [head(x, sigma_B, pooled_BP) for head, x in zip(self.heads, features, strict=True)]

    def calibrate(self, moments_K3D: Tensor) -> None:
        """Measure, once, the mean and standard deviation of each channel of the teacher's
        features, from the `channel_moments` of real data.
        """
        if self.last_only:
            moments_K3D = moments_K3D[-1:]
        for head, moments_3D in zip(self.heads, moments_K3D, strict=True):
            if isinstance(head.norm, Standardize):
                head.norm.measure(moments_3D)


def channel_moments(features: Sequence[Tensor]) -> Tensor:
    """Number of positions, sum and sum of squares of each channel at every tap: (K, 3, D) float64.
    Add them up over batches and ranks.
    """
    return torch.stack([_moments(x.transpose(0, 1).flatten(1).double()) for x in features])


def _moments(x_DN: Tensor) -> Tensor:
    return torch.stack(
        [torch.full_like(x_DN[:, 0], x_DN.shape[1]), x_DN.sum(1), x_DN.square().sum(1)]
    )


class Standardize(nn.Module):
    """Brings each channel to mean 0 and standard deviation 1, by statistics measured once.

    A few channels of a transformer's residual stream dwarf all others, and a norm over the whole
    picture does not change that. This is the data-dependent initialisation of ActNorm (Kingma and
    Dhariwal 2018, section 3.1), held fixed. Before `measure` it is the identity.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    def measure(self, moments_3D: Tensor) -> None:
        count, total, squares = moments_3D
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
        self.mean_D.copy_(mean)
        self.scale_D.copy_(1 / deviation)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        return (x_BDhw - self.mean_D[:, None, None]) * self.scale_D[:, None, None]


class Head(nn.Module):
    """Maps features (B, D, h, w) to logits (B, h, w). Uses group norms, because batch statistics
    are unreliable on small micro-batches.
    """

    def __init__(self, width: int, pooled_width: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        channels = config.channels
        groups = math.gcd(8, channels)
        self.in_rows = config.convolutions == "1d"
        # A kernel of 9 along the tokens has as many weights as one of 3 by 3.
        kernel = (1, 9) if self.in_rows else (3, 3)
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.norm = Standardize(width) if config.standardized else nn.GroupNorm(1, width)
        self.enter = nn.Conv2d(width, channels, kernel, padding=padding)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, padding=padding),
        )
        self.leave = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU())
        self.logit = nn.Conv2d(channels, 1, 1)
        self.condition = None
        if config.conditioned:
            self.condition = nn.Sequential(
                nn.Linear(pooled_width + _TIME_WIDTH, channels),
                nn.SiLU(),
                nn.Linear(channels, channels),
            )

    def forward(self, x_BDhw: Tensor, sigma_B: Tensor, pooled_BP: Tensor) -> Tensor:
        rows, columns = x_BDhw.shape[-2:]
        x_BDhw = self.norm(x_BDhw)
        if self.in_rows:
            x_BDhw = x_BDhw.flatten(2).unsqueeze(2)
        x = self.enter(x_BDhw)
        x_BChw = self.leave(x + self.body(x)).reshape(len(x), -1, rows, columns)
        logit_Bhw = self.logit(x_BChw).squeeze(1)
        if self.condition is None:
            return logit_Bhw.float()
        pooled = F.layer_norm(pooled_BP, pooled_BP.shape[1:])
        direction_BC = self.condition(
            torch.cat([pooled, time_embedding(sigma_B).to(pooled.dtype)], dim=1)
        )
        projection = torch.einsum("bchw,bc->bhw", x_BChw, direction_BC) / math.sqrt(x_BChw.shape[1])
        return (logit_Bhw + projection).float()


_TIME_WIDTH = 32


def time_embedding(sigma_B: Tensor) -> Tensor:
    """Sines and cosines (B, 32) of a noise level in [0, 1]."""
    frequencies = torch.exp(
        torch.linspace(0, math.log(1000), _TIME_WIDTH // 2, device=sigma_B.device)
    )
    angles = sigma_B.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
