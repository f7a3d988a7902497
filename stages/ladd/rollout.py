"""Student rollout: makes the input at a lower noise level from the student's own earlier steps.

Closes the gap between training, where this input is a noised teacher latent, and sampling (DMD2's
backward simulation, Yin et al. 2024, section 4.4). Legend in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import Draws, add_noise, clean_estimate


@torch.no_grad()
def rolled_out(
    student: Backbone,
    x0_BCHW: Tensor,
    conditioning: Conditioning,
    draws: Draws,
    grid: Sequence[float],
) -> Tensor:
    """Clean latents (B, C, H, W) to be noised to `draws.student_sigma_B`: for a sample that rolls
    out, the consistency sampler's estimate before that level, else `x0_BCHW`.

    The number of forward passes does not depend on the draws, so sharded ranks stay in step.
    """
    assert draws.rolls_out_B is not None and draws.rollout_noise_BKCHW is not None
    clean_BCHW = x0_BCHW
    for k, level in enumerate(grid[:-1]):
        sigma_B = torch.full_like(draws.student_sigma_B, level)
        x = add_noise(clean_BCHW, draws.rollout_noise_BKCHW[:, k], sigma_B)
        estimate = clean_estimate(x, student.velocity(x, sigma_B, conditioning).float(), sigma_B)
        earlier = draws.rolls_out_B & (draws.student_sigma_B < level)
        clean_BCHW = torch.where(earlier.view(-1, 1, 1, 1), estimate, clean_BCHW)
    return clean_BCHW
