"""A running average of the weights of a net that are trained: what is sampled from and saved."""

from __future__ import annotations

import torch
from torch import nn


class ExponentialAverage(nn.Module):
    """`average = decay * average + (1 - decay) * weights`, with a faster start: decay is at most (1
    + n) / (10 + n).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        copies = [nn.Parameter(p.detach().clone(), requires_grad=False) for p in _trained(net)]
        self.averages = nn.ParameterList(copies)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take in the weights after update `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averages), _trained(net), 1 - decay)

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        for parameter, average in zip(_trained(net), self.averages, strict=True):
            parameter.copy_(average)

    @torch.no_grad()
    def swap_with(self, net: nn.Module) -> None:
        """Exchange averages and weights; a second call undoes it."""
        for parameter, average in zip(_trained(net), self.averages, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)


def _trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]
