"""Inputs from the student's own earlier steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from schemas.config import (
    RenoiseConfig,
    StudentTimeConfig,
)
from stages.ladd.flow import draw
from stages.ladd.rollout import rolled_out
from tests.support.trainers import plain_trainer

GRID = [1.0, 0.75, 0.5, 0.25]


def test_rollout_is_what_the_sampler_holds_before_each_level(tiny_backbones, tiny_batch):
    student, (latents, conditioning) = tiny_backbones[0], tiny_batch
    time = StudentTimeConfig(
        probabilities=(0.25,) * 4, warmup_steps=0, warmup_probabilities=(0.25,) * 4, rollout=1.0
    )
    draws = draw(3, 0, range(4), latents.shape[1:], time, RenoiseConfig(), student_step=0)
    draws = replace(draws, student_sigma_B=torch.tensor(GRID))
    made = rolled_out(student, latents, conditioning, draws, GRID)
    assert torch.equal(made[0], latents[0]), "the first level starts from noise: nothing before it"
    for row in (1, 2, 3):
        noises = draws.rollout_noise_BKCHW[row, :row]
        expected = _consistency(student, noises, conditioning.select([row]), GRID[:row])
        torch.testing.assert_close(made[row], expected, atol=1e-5, rtol=1e-4)


def _consistency(student, noises, conditioning, levels):
    x0 = None
    for noise, level in zip(noises, levels, strict=True):
        x = noise if x0 is None else (1 - level) * x0 + level * noise
        with torch.no_grad():
            v = student.velocity(x[None], torch.tensor([level]), conditioning)[0]
        x0 = x - level * v
    return x0


def test_rollout_trains_on_other_inputs(tiny_backbones, tiny_batch):
    time = {"probabilities": (0, 0, 0, 1.0), "warmup_steps": 0}
    losses = [
        plain_trainer(tiny_backbones, student_time=StudentTimeConfig(**time, rollout=share)).update(
            *tiny_batch
        )["student_loss"]
        for share in (0.0, 1.0)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
