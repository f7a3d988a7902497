"""What an update costs, in forward passes of the transformer for one sample. Imports no torch.

With F the cost of one pass: student forward and backward 3F, teacher on the student's latents with
gradient to its input 2F, teacher on the data 1F. So both nets learn for 6F, where separate
iterations for student and heads cost 8F. R1 costs another 1F, and so does each mismatched sample.
"""

from __future__ import annotations

from schemas.config import DistillConfig
from stages.ladd.batch_plan import mismatched_slots


def passes(config: DistillConfig, *, train_student: bool) -> float:
    """What an update costs for each sample, in forward passes of the transformer, as counted above.
    The heads, which are far smaller, and activation checkpointing are left out.
    """
    cost = 6.0 if train_student else 3.0
    if train_student and config.lora is not None:
        cost -= 1  # the base weights take no gradient
    if config.student_time.rollout > 0:
        cost += len(config.student_time.grid) - 1
    if config.objective.r1_weight > 0:
        cost += 1
    mismatched = mismatched_slots(config.global_batch, config.objective.mismatched_share)
    return cost + len(mismatched) / config.global_batch


def head_passes(config: DistillConfig) -> float:
    """What an update costs for each sample, in passes through the heads: forward and backward on
    the fake and on the data, and on each mismatched sample; R1 adds a pass on the noised data.
    """
    slots = mismatched_slots(config.global_batch, config.objective.mismatched_share)
    cost = 6.0 + 3 * len(slots) / config.global_batch
    return cost + (3 if config.objective.r1_weight > 0 else 0)
