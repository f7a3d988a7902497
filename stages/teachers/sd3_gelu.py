"""GELU in its tanh form (Hendrycks and Gimpel 2016), as a CPU computes it quickly.

With `z = 2 sqrt(2 / pi) (x + 0.044715 x^3)`, `x (1 + tanh(z / 2)) / 2` equals `x sigmoid(z)`.
PyTorch's CPU kernel takes the tanh, which is so slow that the activation takes a quarter of a small
teacher's sampling. The sigmoid takes half the time, and is as exact in float32; in bfloat16 it
rounds up to 1.3 times as much (`tests/unit/stages/teachers/test_sd3_gelu.py`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn import functional as F

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def use_fast_gelu(net: nn.Module) -> None:
    """Let every activation of `net` that is the tanh form compute it by `tanh_gelu`, in place."""
    for layer in net.modules():
        if isinstance(layer, GELU) and layer.approximate == "tanh":
            layer.gelu = tanh_gelu


def tanh_gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")` of any shape. The values do not depend on whether gradients
    are wanted: the discriminator compares features of passes with and without.
    """
    if x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    if x.requires_grad and torch.is_grad_enabled():
        return _TanhGelu.apply(x)
    return _gate(x).mul_(x)


class _TanhGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = _gate(x)
        ctx.save_for_backward(x, gate)
        return gate * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = _polynomial(x, 3 * _CUBIC).mul_(x)  # x dz/dx
        slope = torch.ops.aten.sigmoid_backward(slope, gate)
        return slope.add_(gate).mul_(grad)


def _gate(x: Tensor) -> Tensor:
    return _polynomial(x, _CUBIC).mul_(x).sigmoid_()


def _polynomial(x: Tensor, square: float) -> Tensor:
    """`_LINEAR + square * x^2` in one pass."""
    linear = torch.tensor(_LINEAR, dtype=torch.float64)  # a scalar does not change x's dtype
    return torch.addcmul(linear, x, x, value=square)
