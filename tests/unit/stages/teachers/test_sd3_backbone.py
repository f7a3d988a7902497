"""The backbone against diffusers' own forward pass."""

from __future__ import annotations

import pytest
import torch

from stages.ladd.backbone import Conditioning
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.tiny_sd3 import tiny_transformer


@pytest.mark.parametrize("dual", [(), (0, 1)])
@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
@pytest.mark.parametrize("null_tokens", [0, 1, 256])
def test_backbone_equals_diffusers_forward(dual, qk_norm, null_tokens):
    """Folded zeros act exactly as that many rows of zeros."""
    net = tiny_transformer(dual=dual, qk_norm=qk_norm)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 12, generator=generator)
    sigma = torch.tensor([1.0, 0.4, 0.05])
    tokens, pooled = (
        torch.randn(3, 5, 24, generator=generator),
        torch.randn(3, 24, generator=generator),
    )
    with torch.no_grad():
        expected = net(
            hidden_states=x,
            timestep=1000 * sigma,
            pooled_projections=pooled,
            return_dict=False,
            encoder_hidden_states=torch.cat([tokens, torch.zeros(3, null_tokens, 24)], dim=1),
        )[0]
        found = SD3Backbone(net).velocity(x, sigma, Conditioning(tokens, pooled, null_tokens))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_flat_autocast_does_not_move_the_taps(tiny_backbones, tiny_batch):
    """bfloat16 forward passes stay near float32 ones."""
    _, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    sigma = torch.full((4,), 0.5)
    with torch.no_grad():
        exact = teacher.features(latents, sigma, conditioning)
        with torch.autocast("cpu", torch.bfloat16):
            rough = teacher.features(latents, sigma, conditioning)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).abs().mean() < 0.05 * a.abs().mean()
