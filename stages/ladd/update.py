"""One LADD update, whole: student and heads learn from the same forward passes.

With F one forward of the transformer for one sample: student forward and backward 3F, teacher on
the student's latents with gradient to its input 2F, teacher on the data's latents 1F: 6F for both
nets' updates. Pure torch. Legend in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import Draws, add_noise, clean_estimate
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.losses import discriminator_loss, student_loss


@dataclass(frozen=True)
class Losses:
    """Scalars of one micro-batch, detached."""

    student: Tensor
    discriminator: Tensor
    real_logit: Tensor
    fake_logit: Tensor


def accumulate_gradients(
    student: Backbone,
    teacher: Backbone,
    heads: DiscriminatorHeads,
    x0_BCHW: Tensor,
    conditioning: Conditioning,
    draws: Draws,
    *,
    share: float = 1.0,
    train_student: bool = True,
    autocast: Callable[[], torch.autocast],
) -> Losses:
    """Add the gradients of one micro-batch to student and heads (LADD, section 3 and figure 2).

    `x0_BCHW` are clean latents that the teacher made, float32. `share` is the micro-batch's part of
    the global batch. Without `train_student` (the heads' head start) the student gets no gradient.
    The teacher's parameters must be frozen; gradient reaches the student through the teacher's
    activations.
    """
    sigma, noise = draws.renoise_sigma_B, draws.renoise_noise_BCHW
    with torch.set_grad_enabled(train_student), autocast():
        x_t = add_noise(x0_BCHW, draws.student_noise_BCHW, draws.student_sigma_B)
        velocity = student.velocity(x_t, draws.student_sigma_B, conditioning).float()
        fake = clean_estimate(x_t, velocity, draws.student_sigma_B)
        fake_features = teacher.features(add_noise(fake, noise, sigma), sigma, conditioning)
    if train_student:
        heads.requires_grad_(False)
        with autocast():
            loss_student = student_loss(heads(fake_features, sigma, conditioning.pooled_BP))
        (share * loss_student).backward()
        heads.requires_grad_(True)
    with torch.no_grad(), autocast():
        real_features = teacher.features(add_noise(x0_BCHW, noise, sigma), sigma, conditioning)
    with autocast():
        real = heads(real_features, sigma, conditioning.pooled_BP)
        judged = heads(
            [features.detach() for features in fake_features], sigma, conditioning.pooled_BP
        )
    loss_heads = discriminator_loss(real, judged)
    (share * loss_heads).backward()
    means = [
        torch.stack([logits.detach().mean() for logits in side]).mean() for side in (real, judged)
    ]
    # Before the student's first update its loss is what the heads say of it now.
    loss_student = loss_student.detach() if train_student else -means[1]
    return Losses(loss_student, loss_heads.detach(), *means)
