"""In which precision a device computes what the configuration calls bfloat16.

A CPU without instructions for it multiplies bfloat16 matrices more slowly than float32 ones, so
such a CPU computes in float32. Measured on one core: 0.8 against 72 GFLOP/s with AVX2 alone, 34
against 113 to 135 with AVX-512, for which oneDNN has kernels that convert.
"""

from __future__ import annotations

import platform

import torch
from torch import nn


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, and torch has kernels for it."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computed_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which `device` computes what is meant to be in `dtype`."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu_has_bfloat16():
        return torch.float32
    return dtype


def autocast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """Autocast to bfloat16, where `enabled` and where the device computes in it."""
    is_fast = computed_dtype(torch.bfloat16, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and is_fast)


def keep_matrices_low(net: nn.Module, device: torch.device) -> None:
    """Keep linear and convolutional layers in bfloat16, in place, where no value changes by that
    and `device` computes in bfloat16. All else stays as it is.

    Under `autocast` the net then computes the same, bit for bit: autocast would cast these weights
    on each call, and keep the copies beside them. Without autocast the net cannot be called.
    """
    if computed_dtype(torch.bfloat16, device) != torch.bfloat16:
        return
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and all(
            torch.equal(weight, weight.bfloat16().to(weight.dtype))
            for weight in layer.parameters(recurse=False)
        ):
            layer.to(torch.bfloat16)
