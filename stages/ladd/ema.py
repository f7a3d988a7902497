"""Running average of a net's trained weights. The student is sampled and saved with the average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def averaged_tensors(net: nn.Module) -> dict[str, Tensor]:
    """A net's trained weights, under the names in which `ExponentialAverage` saves averages."""
    return {f"averages.{i}": p.detach() for i, p in enumerate(_trained(net))}


class ExponentialAverage(nn.Module):
    """`average = decay * average + (1 - decay) * weights`, with a faster start: after update n the
    decay is at most (1 + n) / (10 + n).

    The averages are stored on `device`, by default the weights' device. Each one is updated on its
    weight's device, so `device` does not change the numbers. On the host they are in pinned memory
    for weights on a GPU: pageable memory is copied several times more slowly.
    """

    def __init__(self, net: nn.Module, decay: float, device: torch.device | None = None) -> None:
        super().__init__()
        self.decay, self._apart = decay, device is not None
        copies = [p.detach().clone() for p in _trained(net)]
        self.averages = nn.ParameterList(
            nn.Parameter(copy if device is None else _stored(copy, device), requires_grad=False)
            for copy in copies
        )

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Add the weights after update `step`, counted from 0, to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if not self._apart:
            torch._foreach_lerp_(list(self.averages), _trained(net), 1 - decay)
            return
        for parameter, average in self._pairs(net):
            average.copy_(average.to(parameter.device).lerp_(parameter, 1 - decay))

    @torch.no_grad()
    def copy_to(self, net: nn.Module) -> None:
        for parameter, average in self._pairs(net):
            parameter.copy_(average)

    @torch.no_grad()
    def swap_with(self, net: nn.Module) -> None:
        """Swap averages and weights; a second call swaps them back."""
        for parameter, average in self._pairs(net):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    @contextmanager
    def shown_by(self, net: nn.Module) -> Iterator[None]:
        """A block in which the net has the averages for weights, and is in evaluation mode. If it
        is sharded, every rank enters it.
        """
        self.swap_with(net)
        net.eval()
        try:
            yield
        finally:
            net.train()
            self.swap_with(net)

    def _pairs(self, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """This rank's shards of each weight and of its average."""
        return [
            (_own(parameter), _own(average))
            for parameter, average in zip(_trained(net), self.averages, strict=True)
        ]


def _trained(net: nn.Module) -> list[Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def _stored(tensor: Tensor, device: torch.device) -> Tensor:
    copy = tensor.to(device)
    is_plain = not isinstance(copy, DTensor)
    return copy.pin_memory() if tensor.is_cuda and device.type == "cpu" and is_plain else copy


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
