"""The noise levels of heads and of preference tuning, against diffusers' own draw for training SD3.

Kolmogorov and Smirnov's test at level .001 on 2,000 draws rejects from a distance of .044 on. A
shift that is a quarter off moves the logits by .22 and is at .089, four deviations (of at most
.011) above that: it is seen with a power above .9999.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from scipy.stats import ks_2samp
from torch import Tensor

from schemas.config import DistillConfig, RenoiseConfig, StudentTimeConfig
from stages.ladd.dpo_loss import draw_pairs
from stages.ladd.flow import draw

COUNT, LEVEL = 2000, 0.001


def training_levels(shift: float, mean: float = 0.0) -> Tensor:
    """As in diffusers' examples/dreambooth/train_dreambooth_sd3.py. An index counts from pure noise
    down, so `mean` has the other sign there.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    density = compute_density_for_timestep_sampling(
        "logit_normal", 400_000, -mean, 1.0, generator=torch.Generator().manual_seed(1)
    )
    return scheduler.sigmas[(density * scheduler.config.num_train_timesteps).long()]


@cache
def renoise_levels(**settings) -> Tensor:
    shape, time = torch.Size((1, 1, 1)), StudentTimeConfig()
    draws = draw(5, 0, range(COUNT), shape, time, RenoiseConfig(**settings), student_step=0)
    return draws.renoise_sigma_B


@cache
def pairs_levels(shift: float) -> Tensor:
    return draw_pairs(5, 0, range(COUNT), (1, 1, 1), shift=shift).sigma_P


def differ(found: Tensor, expected: Tensor) -> bool:
    return ks_2samp(found.numpy(), expected.numpy()).pvalue < LEVEL


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_levels_are_those_of_diffusers_training(shift):
    """Bug: leave out `shifted` in `draw_pairs` or in `_renoise_level`, or shift the other way."""
    assert not differ(pairs_levels(shift), training_levels(shift))
    assert not differ(renoise_levels(mean=1.0, shift=shift), training_levels(shift, mean=1.0))


def test_the_test_sees_a_shift_that_is_a_quarter_off():
    for wrong in (3.75, 2.4, 1.0):
        assert differ(pairs_levels(wrong), training_levels(3.0))
    assert differ(renoise_levels(mean=1.0, shift=3.0), training_levels(3.75, mean=1.0))


def test_the_default_is_biased_to_high_noise_on_the_teachers_scale():
    """Above .75 SD3 at 1024 px has half of its training; a mean of 1 without the shift has less."""

    def share(levels: Tensor) -> float:
        return (levels > 0.75).float().mean().item()

    mean = DistillConfig().renoise.mean
    assert share(training_levels(3.0)) == pytest.approx(0.50, abs=0.01)
    assert share(renoise_levels(mean=mean, shift=3.0)) == pytest.approx(0.84, abs=0.04)
    assert share(renoise_levels(mean=mean, shift=1.0)) == pytest.approx(0.46, abs=0.04)
    assert share(pairs_levels(1.0)) == pytest.approx(0.14, abs=0.04)
