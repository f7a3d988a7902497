"""Diffusion-DPO (Wallace et al. 2023, equation 14) for rectified flow: the loss of preference
pairs.

A net that errs less on the winners, and more on the losers, than its reference does is said to
prefer the winners. Errors are means over elements, so that buckets compare. P pairs; the rest of
the legend is in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import add_noise, draw_seed


@dataclass(frozen=True)
class PairDraws:
    """All randomness of a batch of pairs: winner and loser get the same noise at the same level."""

    sigma_P: Tensor
    noise_PCHW: Tensor

    def to(self, device: torch.device | str) -> PairDraws:
        return PairDraws(self.sigma_P.to(device), self.noise_PCHW.to(device))


def draw_pairs(
    seed: int,
    step: int | str,
    slots: range,
    shape_CHW: Sequence[int],
    levels: Sequence[float] | None = None,
) -> PairDraws:
    """Noise and noise levels for the pairs `slots` of the global batch of update `step`.

    A pair's draws depend on seed, step and slot alone. Without `levels` the noise level is
    `sigmoid(N(0, 1))`, as SD3 was trained (Esser et al. 2024, section 3.1); otherwise one of them.
    """
    sigmas, noises = [], []
    for slot in slots:
        generator = torch.Generator().manual_seed(draw_seed("dpo", seed, step, slot))
        if levels is None:
            sigmas.append(torch.randn((), generator=generator).sigmoid())
        else:
            place = torch.randint(len(levels), (), generator=generator)
            sigmas.append(torch.tensor(list(levels))[place])
        noises.append(torch.randn(tuple(shape_CHW), generator=generator))
    return PairDraws(torch.stack(sigmas), torch.stack(noises))


@dataclass(frozen=True)
class PairErrors:
    """Mean squared errors of the velocity."""

    winner_P: Tensor
    loser_P: Tensor

    def detach(self) -> PairErrors:
        return PairErrors(self.winner_P.detach(), self.loser_P.detach())


def pair_errors(
    net: Backbone,
    winners_PCHW: Tensor,
    losers_PCHW: Tensor,
    conditioning: Conditioning,
    draws: PairDraws,
) -> PairErrors:
    """Errors of the net on both pictures of each pair, in one pass: (P,) each, float32."""
    x0 = torch.cat([winners_PCHW, losers_PCHW])
    noise = torch.cat([draws.noise_PCHW, draws.noise_PCHW])
    sigma = torch.cat([draws.sigma_P, draws.sigma_P])
    both = Conditioning.cat([conditioning, conditioning])
    velocity = net.velocity(add_noise(x0, noise, sigma), sigma, both).float()
    errors = (noise - x0 - velocity).square().flatten(1).mean(1)
    return PairErrors(*errors.chunk(2))


def preference_margin(errors: PairErrors, reference: PairErrors, beta: float) -> Tensor:
    """`-beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)]`, (P,): above 0 where the net prefers the winner
    more than its reference does.
    """
    gained = errors.winner_P - reference.winner_P
    lost = errors.loser_P - reference.loser_P
    return -beta / 2 * (gained - lost)


def preference_loss(margin_P: Tensor) -> Tensor:
    """`-log sigmoid(margin)`, a mean over pairs: log 2 where nothing is preferred."""
    return -F.logsigmoid(margin_P).mean()
