"""Noise levels and noises that an update draws."""

from __future__ import annotations

import pytest
import torch

from schemas.config import (
    RenoiseConfig,
    StudentTimeConfig,
)
from stages.ladd.flow import draw


def levels(step: int, count: int = 4000, **renoise):
    time = StudentTimeConfig(warmup_steps=10)
    shape = torch.Size((1, 1, 1))
    return draw(0, step, range(count), shape, time, RenoiseConfig(**renoise), student_step=step)


def test_student_levels_follow_the_probabilities_and_their_warm_up():
    warm, cold = levels(10).student_sigma_B, levels(9).student_sigma_B
    shares = [(warm == level).float().mean().item() for level in (1.0, 0.75, 0.5, 0.25)]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.03)
    shares = [(cold == level).float().mean().item() for level in (1.0, 0.75, 0.5, 0.25)]
    assert shares == pytest.approx([0, 0, 0.5, 0.5], abs=0.03)


def test_renoise_level_is_logit_normal_and_biased_to_high_noise():
    logits = torch.logit(levels(50).renoise_sigma_B)
    assert logits.mean().item() == pytest.approx(1.0, abs=0.06)
    assert logits.std().item() == pytest.approx(1.0, abs=0.06)
    assert levels(50, mean=-2.0).renoise_sigma_B.median() < 0.2


def test_rollout_leaves_the_other_draws_alone():
    shape, renoise = torch.Size((2, 4, 4)), RenoiseConfig()
    plain = draw(0, 5, range(8), shape, StudentTimeConfig(), renoise, student_step=900)
    time = StudentTimeConfig(rollout=0.5)
    rolled = draw(0, 5, range(8), shape, time, renoise, student_step=900, near=True)
    for name in ("student_sigma_B", "student_noise_BCHW", "renoise_sigma_B", "renoise_noise_BCHW"):
        assert torch.equal(getattr(plain, name), getattr(rolled, name))
    assert plain.rollout_noise_BKCHW is None and plain.near_noise_BCHW is None
    assert rolled.rollout_noise_BKCHW.shape == (8, 3, 2, 4, 4)
    assert 0 < rolled.rolls_out_B.sum() < 8


def test_uniform_levels_are_uniform():
    draws = draw(
        0,
        0,
        range(600),
        torch.Size((1, 1, 1)),
        StudentTimeConfig(),
        RenoiseConfig(distribution="uniform"),
        student_step=0,
    )
    levels = draws.renoise_sigma_B.sort().values
    assert (levels - torch.linspace(0, 1, 600)).abs().max() < 0.07
