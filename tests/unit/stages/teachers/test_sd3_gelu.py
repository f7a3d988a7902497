"""The CPU's tanh GELU against PyTorch's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from diffusers.models.activations import GELU
from torch.nn import functional as F

from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_gelu import tanh_gelu
from tests.support.tiny_sd3 import tiny_transformer

stock = partial(F.gelu, approximate="tanh")


def inputs(dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(-12, 12, 24_001).to(dtype)


def test_values_are_those_of_pytorch():
    exact = stock(inputs(torch.float64))
    assert (tanh_gelu(inputs(torch.float64)) - exact).abs().max() < 1e-12
    assert (tanh_gelu(inputs(torch.float32)) - exact).abs().max() < 2e-6


def test_bfloat16_rounds_little_more_than_pytorch():
    x = 1.5 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    exact = stock(x.bfloat16().double())
    found, usual = (
        (function(x.bfloat16()) - exact).square().mean().sqrt() for function in (tanh_gelu, stock)
    )
    assert found < 1.3 * usual


def test_gradients_are_those_of_pytorch():
    x = inputs(torch.float64).requires_grad_()
    outer = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((outer * function(x)).sum(), x)[0] for function in (tanh_gelu, stock)
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_same_with_and_without_gradients(dtype):
    x = inputs(dtype)
    with torch.no_grad():
        without = tanh_gelu(x)
    assert torch.equal(tanh_gelu(x.clone().requires_grad_()), without)


def test_a_backbone_computes_it_in_every_block():
    net = SD3Backbone(tiny_transformer())
    layers = [layer for layer in net.modules() if isinstance(layer, GELU)]
    # The last block has no MLP for the text.
    assert len(layers) == 2 * len(net.blocks) - 1
    assert all(layer.gelu is tanh_gelu for layer in layers)
