"""AdamW for student and heads, with moments in 32 bits or, from torchao, in 8 (Dettmers et al.
2021).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schemas.config import DistillConfig


def adamw(
    parameters: Iterable[nn.Parameter], config: DistillConfig, bits: Literal[32, 8] = 32
) -> Optimizer:
    """An optimizer whose learning rate is set before every step, by `step`. In 8 bits, tensors of
    fewer than 4096 values and those that 256 does not divide keep 32. Needs torchao for 8.
    """
    options: dict[str, Any] = {
        "lr": 0.0,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if bits == 8:
        from torchao.optim import AdamW8bit

        optimizer: Optimizer = AdamW8bit(parameters, **options)
        return optimizer
    return torch.optim.AdamW(parameters, fused=True, **options)


def step(optimizer: Optimizer, rate: float) -> None:
    """Update the weights at learning rate `rate`."""
    eagerly: AbstractContextManager = nullcontext()
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = rate
            continue
        group["lr"].fill_(rate)  # torchao's, which compiles its step
        if group["params"][0].device.type == "cpu":  # where that needs a C++ compiler
            eagerly = torch.compiler.set_stance("force_eager")
    with eagerly:
        optimizer.step()
