"""In which precision a device computes what the configuration calls bfloat16.

A CPU without instructions for it multiplies bfloat16 matrices some 80 times slower than float32
ones (measured: 0.8 against 72 GFLOP/s on one core), so such a CPU computes in float32.
"""

from __future__ import annotations

import torch


def cpu_has_bfloat16() -> bool:
    """Whether torch has fast bfloat16 kernels for this CPU."""
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
