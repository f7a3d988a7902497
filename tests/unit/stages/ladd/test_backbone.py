"""Conditioning of several prompts."""

from __future__ import annotations

import torch

from stages.ladd.backbone import Conditioning


def test_conditioning_selects_and_joins():
    one = Conditioning(torch.arange(6.0).view(3, 1, 2), torch.arange(3.0).view(3, 1), 5)
    joined = Conditioning.cat([one.select([2]), one.select(slice(0, 1))])
    assert joined.pooled_BP.flatten().tolist() == [2, 0] and joined.null_tokens == 5
