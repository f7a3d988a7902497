"""The hinge losses by hand."""

from __future__ import annotations

import pytest
import torch

from stages.ladd.losses import fake_loss, real_loss, student_loss


def test_hinge_losses_by_hand():
    real, fake = [torch.tensor([[[2.0, 0.5]]])], [torch.tensor([[[-2.0, 0.0]]])]
    assert real_loss(real).item() == pytest.approx((0 + 0.5) / 2)
    assert fake_loss(fake).item() == pytest.approx((0 + 1) / 2)
    assert student_loss(fake).item() == pytest.approx(1.0)


def test_every_tap_counts_alike_whatever_its_size():
    big, small = torch.full((1, 8, 8), 3.0), torch.full((1, 2, 2), -1.0)
    assert student_loss([big, small]).item() == pytest.approx(-1.0)
