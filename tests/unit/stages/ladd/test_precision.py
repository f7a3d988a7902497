"""Which CPUs compute in bfloat16."""

from __future__ import annotations

import pytest
import torch

from stages.ladd import precision
from stages.teachers import sd3_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("avx2", torch.float32),
        ("avx2 avx512f avx512bw avx512_vnni", torch.float32),
        ("avx2 avx512f avx512bw avx512_bf16", torch.bfloat16),
        ("avx2 avx512f avx512bw amx_bf16 amx_tile", torch.bfloat16),
    ],
)
def test_without_instructions_for_it_a_cpu_computes_in_float32(flags, dtype, monkeypatch):
    """Bug: take oneDNN's word, which has slow kernels for every CPU with AVX-512."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in flags)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx_tile" in flags)
    assert precision.computed_dtype(torch.bfloat16, CPU) == dtype
    assert precision.computed_dtype(torch.float32, CPU) == torch.float32


def test_the_estimate_knows_it_without_torch():
    assert sd3_memory._cpu_has_bfloat16() == precision.cpu_has_bfloat16()
