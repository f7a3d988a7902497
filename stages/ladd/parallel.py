"""What several ranks share: gradients. The rest of the method does not know how many there are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Add up tensors over all ranks, in place, in one message."""
    tensors = list(tensors)
    if rank_and_world()[1] == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
