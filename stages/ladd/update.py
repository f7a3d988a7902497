"""One LADD update, whole: student and heads learn from the same forward passes.

With F one forward of the transformer for one sample: student forward and backward 3F, teacher on
the student's latents with gradient to its input 2F, teacher on the data's latents 1F: 6F for both
nets' updates. One call for real and fake would cost 7F: the backward pass would go through both.
R1 costs 1F more, a sample that is seen under another's prompt too. Pure torch. Legend in
`backbone.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.config import ObjectiveConfig
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import Draws, add_noise, clean_estimate
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.losses import fake_loss, r1_penalty, real_loss, student_loss

_HINGE = ObjectiveConfig()


@dataclass(frozen=True)
class Losses:
    """Scalars of one micro-batch, detached."""

    student: Tensor
    discriminator: Tensor
    real_logit: Tensor
    fake_logit: Tensor


@dataclass(frozen=True)
class Mismatched:
    """Data that the heads learn to tell from the rest by its prompt, which is another sample's."""

    rows: list[int]
    """Which samples of the micro-batch."""
    prompts: Conditioning
    weight: float
    """Of their mean in the micro-batch's loss: their part of all such samples of the global batch
    over the micro-batch's part of all samples.
    """


def accumulate_gradients(
    student: Backbone,
    teacher: Backbone,
    heads: DiscriminatorHeads,
    x0_BCHW: Tensor,
    conditioning: Conditioning,
    draws: Draws,
    *,
    start_BCHW: Tensor | None = None,
    mismatched: Mismatched | None = None,
    objective: ObjectiveConfig = _HINGE,
    share: float = 1.0,
    train_student: bool = True,
    autocast: Callable[[], torch.autocast],
) -> Losses:
    """Add the gradients of one micro-batch to student and heads (LADD, section 3 and figure 2).

    `x0_BCHW` are clean latents that the teacher made, float32; `start_BCHW` takes their place in
    the student's input where it rolls out; `mismatched` is there where the objective has a share
    for it. `share` is the micro-batch's part of the global batch.
    Without `train_student` (the heads learn alone) the student gets no gradient.
    The teacher's parameters must be frozen; gradient reaches the student through the teacher's
    activations.
    """
    sigma, noise = draws.renoise_sigma_B, draws.renoise_noise_BCHW
    with torch.set_grad_enabled(train_student), autocast():
        start = x0_BCHW if start_BCHW is None else start_BCHW
        x_t = add_noise(start, draws.student_noise_BCHW, draws.student_sigma_B)
        velocity = student.velocity(x_t, draws.student_sigma_B, conditioning).float()
        fake = clean_estimate(x_t, velocity, draws.student_sigma_B)
        fake_features = teacher.features(add_noise(fake, noise, sigma), sigma, conditioning)
    # The heads judge the fakes once for both losses: what the student's loss sends back stops at
    # the features, and goes on from there through teacher and student.
    leaves = [features.detach().requires_grad_(train_student) for features in fake_features]
    with autocast():
        judged = heads(leaves, sigma, conditioning.pooled_BP)
    loss_student = student_loss(judged, objective.adversarial)
    if train_student:
        (share * loss_student).backward(inputs=leaves, retain_graph=True)
        judged_alone = [
            (features, leaf.grad)
            for features, leaf in zip(fake_features, leaves, strict=True)
            if leaf.grad is not None  # heads may sit behind the last block alone
        ]
        roots, sent_back = (list(side) for side in zip(*judged_alone, strict=True))
        if objective.regression_weight > 0:
            distance = objective.regression_weight * (fake - x0_BCHW).square().mean()
            loss_student = loss_student + distance
            roots, sent_back = [*roots, share * distance], [*sent_back, None]
        torch.autograd.backward(roots, sent_back)
    with torch.no_grad(), autocast():
        real_noised = add_noise(x0_BCHW, noise, sigma)
        real_features = teacher.features(real_noised, sigma, conditioning)
    with autocast():
        real = heads(real_features, sigma, conditioning.pooled_BP)
    others = objective.mismatched_share
    loss_heads = real_loss(real, objective.adversarial)
    loss_heads = loss_heads + (1 - others) * fake_loss(judged, objective.adversarial)
    if others > 0:
        assert mismatched is not None
        some, prompts = mismatched.rows, mismatched.prompts
        with torch.no_grad(), autocast():
            wrong_features = teacher.features(real_noised[some], sigma[some], prompts)
        with autocast():
            wrong = heads(wrong_features, sigma[some], prompts.pooled_BP)
        cost = fake_loss(wrong, objective.adversarial)
        loss_heads = loss_heads + others * mismatched.weight * cost
    if objective.r1_weight > 0:
        assert draws.near_noise_BCHW is not None
        with torch.no_grad(), autocast():
            near_noised = real_noised + objective.r1_sigma * draws.near_noise_BCHW
            near_features = teacher.features(near_noised, sigma, conditioning)
        with autocast():
            near = heads(near_features, sigma, conditioning.pooled_BP)
        loss_heads = loss_heads + objective.r1_weight * r1_penalty(real, near)
    (share * loss_heads).backward(inputs=list(heads.parameters()))
    means = [
        torch.stack([logits.detach().mean() for logits in side]).mean() for side in (real, judged)
    ]
    return Losses(loss_student.detach(), loss_heads.detach(), *means)
