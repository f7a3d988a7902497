"""Frozen weights in one byte a number, int8 or float8, with a scale for each row.

Absmax over rows (Dettmers et al. 2022, section 2) in torch's own dtypes. The weight-only layers of
torchao are made for inference: a frozen teacher passes gradients on, and with them autograd keeps a
copy of each weight in the activations' precision until the backward pass. Codes and scales are
buffers, which FSDP leaves alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.ladd.backbone import Backbone

Kind = Literal["int8", "float8"]
_LARGEST = {"int8": 127.0, "float8": torch.finfo(torch.float8_e4m3fn).max}
_TINY = torch.finfo(torch.float32).tiny
"""A row of zeros has a scale too."""


def quantize_blocks(backbone: Backbone, kind: Kind) -> None:
    """Quantise all frozen linear layers of a backbone's blocks, in place; adapters stay as they
    are.
    """
    for block in backbone.blocks:
        for name, layer in list(block.named_modules()):
            if type(layer) is nn.Linear and not layer.weight.requires_grad:
                parent, _, child = name.rpartition(".")
                setattr(block.get_submodule(parent), child, LowBitLinear(layer, kind))


class LowBitLinear(nn.Module):
    """A frozen linear layer from quantised weights. Gradient reaches its input."""

    codes: Tensor
    """(outputs, inputs), int8 or float8_e4m3fn."""
    scale: Tensor
    """(outputs, 1), float32."""

    def __init__(self, layer: nn.Linear, kind: Kind) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(_TINY) / _LARGEST[kind]
        codes = weight / scale
        is_int = kind == "int8"
        codes = codes.round().to(torch.int8) if is_int else codes.to(torch.float8_e4m3fn)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs), in the dtype of `x` or of autocast."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return _FrozenLinear.apply(x, self.codes, self.scale, self.bias)


class _FrozenLinear(torch.autograd.Function):
    """Keeps nothing for the backward pass but the codes, and restores the weights once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scale)
        return F.linear(x, _restored(codes, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ _restored(codes, scale, gradient.dtype), None, None, None


def _restored(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() * scale).to(dtype)
