"""The preference loss against an oracle, and its draws."""

from __future__ import annotations

import math

import pytest
import torch

from stages.ladd.dpo_loss import (
    PairDraws,
    draw_pairs,
    pair_errors,
    preference_loss,
    preference_margin,
)
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.pairs import (
    GRID,
)
from tests.support.preference import BETA, oracle, pairs_of, tiny_net
from tests.support.tiny_sd3 import tiny_transformer


def test_loss_and_gradients_equal_plain_autograd():
    net, adapters = tiny_net()
    base = SD3Backbone(tiny_transformer())
    winners, losers, conditioning = pairs_of(0)
    sigma, noise = torch.tensor([0.9, 0.2, 0.55, 1.0]), torch.randn(winners.shape)
    trained = [p for p in net.parameters() if p.requires_grad]
    expected = oracle(net, base, winners, losers, conditioning, sigma, noise, BETA)
    gradients = torch.autograd.grad(expected, trained, allow_unused=True)
    draws = PairDraws(sigma, noise)
    with torch.no_grad(), adapters.off():
        reference = pair_errors(net, winners, losers, conditioning, draws)
    errors = pair_errors(net, winners, losers, conditioning, draws)
    loss = preference_loss(preference_margin(errors, reference, BETA))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert abs(loss.item() - math.log(2)) > 0.05
    loss.backward()
    compared = 0
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=2e-3)
        compared += gradient.abs().sum() > 0
    assert compared > 40
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_winner_and_loser_get_the_same_noise_at_the_same_level():
    """Bug: draw the noise for the 2P pictures instead of the P pairs."""
    seen = []

    class Recording:
        def velocity(self, x, sigma, conditioning):
            seen.append((x, sigma))
            return torch.zeros_like(x)

    winners, _, conditioning = pairs_of(0)
    draws = draw_pairs(0, 0, range(4), winners.shape[1:])
    errors = pair_errors(Recording(), winners, winners, conditioning, draws)
    ((x, sigma),) = seen
    assert torch.equal(x[:4], x[4:]) and torch.equal(sigma[:4], sigma[4:])
    assert torch.equal(errors.winner_P, errors.loser_P)


def test_draws_depend_on_seed_step_and_slot_alone():
    shape = (4, 8, 8)
    whole, first, second = (
        draw_pairs(7, 3, slots, shape) for slots in (range(8), range(4), range(4, 8))
    )
    assert torch.equal(whole.noise_PCHW, torch.cat([first.noise_PCHW, second.noise_PCHW]))
    assert torch.equal(whole.sigma_P, torch.cat([first.sigma_P, second.sigma_P]))
    assert torch.pdist(whole.noise_PCHW.flatten(1)).min() > 1
    for other in (draw_pairs(7, 4, range(8), shape), draw_pairs(8, 3, range(8), shape)):
        assert not torch.equal(other.noise_PCHW, whole.noise_PCHW)


def test_the_teacher_is_tuned_at_sd3s_levels_and_the_student_at_its_own():
    levels = draw_pairs(0, 0, range(4000), (1, 1, 1)).sigma_P
    normal = levels.logit()
    assert normal.mean().item() == pytest.approx(0, abs=0.05)
    assert normal.std().item() == pytest.approx(1, abs=0.05)
    own = draw_pairs(0, 0, range(400), (1, 1, 1), GRID).sigma_P
    shares = [(own == level).float().mean().item() for level in GRID]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.17
