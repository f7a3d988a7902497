"""Which CPUs compute in bfloat16, and which weights stay in it."""

from __future__ import annotations

import pytest
import torch

from stages.ladd import precision
from stages.ladd.backbone import Conditioning
from stages.teachers import sd3_memory
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.tiny_sd3 import tiny_transformer

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


def saved_in(dtype: torch.dtype, **shape) -> SD3Backbone:
    """A net with weights that were rounded to `dtype`, in float32."""
    return SD3Backbone(tiny_transformer(**shape).to(dtype).float()).eval()


@pytest.mark.parametrize(
    "shape", [{"qk_norm": None}, {"dual": (0, 1)}, {"layers": 2, "dual": (0,)}]
)
@pytest.mark.parametrize("null_tokens", [0, 256])
def test_matrices_kept_in_bfloat16_compute_the_same_bits(shape, null_tokens, monkeypatch):
    """Bug: cast the whole net, so that tables, norms and what they are added to lose digits."""
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    net, draw = saved_in(torch.bfloat16, **shape), torch.Generator().manual_seed(1)
    batch = (
        torch.randn(2, 4, 16, 12, generator=draw),
        torch.tensor([0.9, 0.25]),
        Conditioning(
            torch.randn(2, 5, 24, generator=draw), torch.randn(2, 24, generator=draw), null_tokens
        ),
    )
    with torch.no_grad(), precision.autocast(CPU):
        before = net.velocity(*batch)
        precision.keep_matrices_low(net, CPU)
        assert net.transformer.proj_out.weight.dtype == torch.bfloat16
        assert net.transformer.pos_embed.proj.weight.dtype == torch.bfloat16
        assert net.transformer.pos_embed.pos_embed.dtype == torch.float32
        assert torch.equal(net.velocity(*batch), before)
    number = sum(p.numel() for p in net.parameters())
    assert sum(p.nbytes for p in net.parameters()) < 2.01 * number


def test_matrices_stay_that_would_lose_digits(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    net = saved_in(torch.float32)
    precision.keep_matrices_low(net, CPU)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {torch.float32}


def test_matrices_stay_where_the_device_computes_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    net = saved_in(torch.bfloat16)
    precision.keep_matrices_low(net, CPU)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
