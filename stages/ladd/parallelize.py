"""Applies compilation and parallelism to a transformer from outside. The method knows of neither.

Each block is one unit, as FSDP2 expects: compiled, gathered and reduced separately.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from stages.ladd.backbone import Backbone
from stages.ladd.parallel import rank_and_world


def compile_blocks(backbone: Backbone) -> None:
    """Compile each block. One compilation serves all blocks of one kind, dtype, gradient mode and
    batch shape.

    Two nets, two kinds of blocks and several buckets exceed torch's default limit, after which it
    silently stops compiling; so the limit is raised.
    """
    torch._dynamo.config.recompile_limit = 64
    for block in backbone.blocks:
        block.compile()


def spread(backbone: Backbone, device: torch.device, shard_over: int, dtype: torch.dtype) -> None:
    """Spread a backbone over all ranks, in place, by FSDP2 (Zhao et al. 2023).

    Each group of `shard_over` ranks shares one copy of the weights, and there are world /
    `shard_over` groups: 1 is plain data parallelism, the world size is full sharding. Gradients are
    summed over all ranks, in float32, during the backward pass. Sharded weights are gathered in
    `dtype`. Does nothing with only one rank.
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
    for module in (*backbone.blocks, backbone):
        # Reshard the root too, even where nothing is sharded: after a forward without a backward,
        # the module must expose the weights that optimizer and average hold, not a gathered copy.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
