"""The preference-pair loss of Diffusion-DPO (Wallace et al. 2023, equation 14) for rectified flow.

A net prefers the winners if, relative to its reference, its error is lower on the winners and
higher on the losers. Errors are means over elements, so they are comparable across buckets.
P pairs; the rest of the legend is in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import add_noise, draw_seed
from stages.ladd.grid import shifted


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
    *,
    shift: float = 1.0,
) -> PairDraws:
    """Noise and noise levels for the pairs `slots` of the global batch of update `step`.

    A pair's draws depend only on seed, step and slot. The noise level is one of `levels`; without
    them it is `sigmoid(N(0, 1))`, shifted, as in SD3's training (Esser et al. 2024, sections 3.1
    and 5.3.2).
    """
    sigmas, noises = [], []
    for slot in slots:
        generator = torch.Generator().manual_seed(draw_seed("dpo", seed, step, slot))
        if levels is None:
            sigmas.append(shifted(torch.randn((), generator=generator).sigmoid(), shift))
        else:
            index = torch.randint(len(levels), (), generator=generator)
            sigmas.append(torch.tensor(list(levels))[index])
        noises.append(torch.randn(tuple(shape_CHW), generator=generator))
    return PairDraws(torch.stack(sigmas), torch.stack(noises))


@dataclass(frozen=True)
class PairErrors:
    """Mean squared velocity errors of a batch of pairs, (P,) each."""

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
    """The net's errors on both pictures of each pair, in one forward pass: (P,) each, float32."""
    x0 = torch.cat([winners_PCHW, losers_PCHW])
    noise = torch.cat([draws.noise_PCHW, draws.noise_PCHW])
    sigma = torch.cat([draws.sigma_P, draws.sigma_P])
    both = Conditioning.cat([conditioning, conditioning])
    velocity = net.velocity(add_noise(x0, noise, sigma), sigma, both).float()
    errors = (noise - x0 - velocity).square().flatten(1).mean(1)
    return PairErrors(*errors.chunk(2))


def preference_margin(errors: PairErrors, reference: PairErrors, beta: float) -> Tensor:
    """`-beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)]`, (P,): positive where the net prefers the
    winner more than its reference does.
    """
    gained = errors.winner_P - reference.winner_P
    lost = errors.loser_P - reference.loser_P
    return -beta / 2 * (gained - lost)


def preference_loss(margin_P: Tensor) -> Tensor:
    """`-log sigmoid(margin)`, averaged over pairs: log 2 when the net has no preference."""
    return -F.logsigmoid(margin_P).mean()
