"""Applies what makes a transformer run on many devices, from outside: the method does not know of
it.

One unit a block, as FSDP2 wants it: compiled alone, gathered and reduced alone.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from stages.ladd.parallel import rank_and_world


class InBlocks(Protocol):
    """A module with a list of alike blocks."""

    blocks: nn.ModuleList


def compile_blocks(backbone: InBlocks) -> None:
    """Compile each block; they are alike, so one compilation serves all of a kind, dtype, gradient
    mode and batch shape. There are more such kinds than torch takes by default before it compiles
    no more, without an error: two nets, two kinds of blocks and several buckets.
    """
    torch._dynamo.config.recompile_limit = 64
    for block in backbone.blocks:
        block.compile()


def spread(backbone: InBlocks, device: torch.device, shard_over: int, dtype: torch.dtype) -> None:
    """Spread a backbone over all ranks, in place, by FSDP2 (Zhao et al. 2023).

    `shard_over` ranks share one copy of the weights, and world / `shard_over` such groups hold a
    copy each: 1 is plain data parallelism, the world's size full sharding. Gradients are summed
    over all ranks, in float32, while the backward pass runs. Where weights are sharded they are
    gathered in `dtype`. Does nothing without other ranks.
    """
    _, world = rank_and_world()
    if world == 1:
        return
    mesh = init_device_mesh(
        device.type, (world // shard_over, shard_over), mesh_dim_names=("copies", "shards")
    )
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if shard_over > 1 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise levels and position tables stay float32
    )
    assert isinstance(backbone, nn.Module)
    for module in (*backbone.blocks, backbone):
        # Also the root, and where nothing is sharded: behind a forward without a backward, what the
        # module shows must be the weights that optimizer and average hold, not a gathered copy.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
