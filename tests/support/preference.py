"""A tiny net with adapters, batches of pairs, and an oracle of the preference loss."""

from __future__ import annotations

import torch

from schemas.config import LoraConfig
from stages.ladd.backbone import Conditioning
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import SD3Adapters, add_adapters
from tests.support.tiny_sd3 import tiny_transformer

CPU = torch.device("cpu")
BETA = 300.0


def tiny_net(*, moved: bool = True) -> tuple[SD3Backbone, SD3Adapters]:
    """A backbone with adapters; `moved` ones already change what it computes."""
    net = SD3Backbone(tiny_transformer())
    adapters = add_adapters(net.transformer, LoraConfig(rank=2), field="dpo.lora")
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net, adapters


def pairs_of(step: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(step)
    winners, losers = (torch.randn(count, 4, 8, 12, generator=generator) for _ in range(2))
    tokens = torch.randn(count, 5, 24, generator=generator)
    pooled = torch.randn(count, 24, generator=generator)
    return winners, losers, Conditioning(tokens, pooled, null_tokens=7)


def oracle(net, base, winners, losers, conditioning, sigma, noise, beta):
    """Wallace et al. 2023, equation 14, for a velocity, one pair at a time: nothing shared with the
    implementation but the nets. `base` has no adapters at all.
    """
    losses = []
    for p in range(len(winners)):
        errors = {}
        for side, x0 in (("w", winners[p]), ("l", losers[p])):
            x_t = (1 - sigma[p]) * x0 + sigma[p] * noise[p]
            target = noise[p] - x0
            for name, model in (("now", net), ("ref", base)):
                with torch.set_grad_enabled(name == "now"):
                    v = model.velocity(x_t[None], sigma[p][None], conditioning.select([p]))[0]
                errors[side, name] = ((target - v) ** 2).sum() / target.numel()
        gained = errors["w", "now"] - errors["w", "ref"]
        lost = errors["l", "now"] - errors["l", "ref"]
        losses.append(-torch.log(torch.sigmoid(-beta / 2 * (gained - lost))))
    return torch.stack(losses).mean()
