"""Collectives over ranks: gradients and their norm. The losses and nets do not know how many ranks
there are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over all ranks, in place, in one all-reduce."""
    tensors = list(tensors)
    if rank_and_world()[1] == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def clip_gradients(net: nn.Module, limit: float) -> float:
    """Sum a net's gradients over all ranks, clip them to the norm `limit`, and return their norm
    before clipping.

    For a net that `parallelize.spread` has spread, the gradients are already summed.
    """
    if not isinstance(net, FSDPModule):
        sum_over_ranks([p.grad for p in net.parameters() if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
