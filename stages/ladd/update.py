"""One LADD update: student and heads learn from the same forward passes (LADD, section 3).

Both nets learn for six forward passes a sample (`passes.py`), where separate iterations for student
and heads cost eight. Pure torch. Legend in `backbone.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.config import ObjectiveConfig
from stages.ladd.backbone import Backbone, Conditioning
from stages.ladd.flow import Draws, add_noise, clean_estimate
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.losses import fake_loss, r1_penalty, real_loss, student_loss

_PAPER = ObjectiveConfig()
"""The hinge loss and nothing else."""


@dataclass(frozen=True)
class Nets:
    """The three nets of an update, and the precision of their forward passes."""

    student: Backbone
    teacher: Backbone
    """Frozen: its parameters take no gradient, its activations pass it on to the student."""
    heads: DiscriminatorHeads
    autocast: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Mismatched:
    """Samples that the heads also see under another sample's prompt, and must then call fake."""

    rows: list[int]
    """Which samples of the micro-batch."""
    prompts: Conditioning
    """The other samples' prompts, one for each row."""
    weight: float
    """Of their mean loss in this micro-batch: it makes every mismatched sample of the global batch
    count the same, however many of them each micro-batch holds.
    """


@dataclass(frozen=True)
class MicroBatch:
    """Samples that go through the nets together."""

    latents_BCHW: Tensor
    """The data: clean latents that the teacher made, float32."""
    prompts: Conditioning
    draws: Draws
    """Noise and noise levels of each sample."""
    share: float = 1.0
    """Of the global batch."""
    start_BCHW: Tensor | None = None
    """The clean latents behind the student's input, where it rolls out; else those of the data."""
    mismatched: Mismatched | None = None
    """Needed where the objective has a `mismatched_share`."""


@dataclass(frozen=True)
class Losses:
    """Scalars of one micro-batch, detached."""

    student: Tensor
    discriminator: Tensor
    real_logit: Tensor
    fake_logit: Tensor


def accumulate_gradients(
    nets: Nets,
    batch: MicroBatch,
    objective: ObjectiveConfig = _PAPER,
    *,
    train_student: bool = True,
) -> Losses:
    """Add the gradients of one micro-batch, weighted by its share, to student and heads.

    Without `train_student` the heads learn alone and the student gets no gradient.
    """
    of_student, of_fake, fake_logit = _learn_from_fake(nets, batch, objective, train_student)
    of_data, real_logit = _learn_from_data(nets, batch, objective)
    return Losses(of_student, of_fake + of_data, real_logit, fake_logit)


def _learn_from_fake(
    nets: Nets, batch: MicroBatch, objective: ObjectiveConfig, train_student: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Student and heads learn from the student's sample, which the heads judge once for both.
    Returns the student's loss, the heads' loss, and the mean logit.

    The graph is cut at the teacher's features: the student's loss stops at these leaves, and goes
    on from there through teacher and student. The heads' part of it is freed before that: at 1024
    px it is as large as their data pass, which comes later.
    """
    fake_BCHW, fake_features = _generate(nets, batch, train_student)
    leaves = [features.detach().requires_grad_(train_student) for features in fake_features]
    with nets.autocast():
        logits = nets.heads(leaves, batch.draws.renoise_sigma_B, batch.prompts.pooled_BP)
    loss_student = student_loss(logits, objective.adversarial)
    if train_student:
        (batch.share * loss_student).backward(inputs=leaves, retain_graph=True)
    loss_heads = (1 - objective.mismatched_share) * fake_loss(logits, objective.adversarial)
    (batch.share * loss_heads).backward(inputs=list(nets.heads.parameters()))
    if train_student:
        weight = objective.regression_weight
        loss_student = loss_student + _backward(fake_features, leaves, fake_BCHW, batch, weight)
    return loss_student.detach(), loss_heads.detach(), _mean(logits)


def _generate(nets: Nets, batch: MicroBatch, with_gradient: bool) -> tuple[Tensor, list[Tensor]]:
    """The student's clean estimate (B, C, H, W), the fake, and the teacher's features of it at the
    discriminator's noise level.
    """
    draws, data = batch.draws, batch.latents_BCHW
    with torch.set_grad_enabled(with_gradient), nets.autocast():
        start = data if batch.start_BCHW is None else batch.start_BCHW
        x_t = add_noise(start, draws.student_noise_BCHW, draws.student_sigma_B)
        velocity = nets.student.velocity(x_t, draws.student_sigma_B, batch.prompts).float()
        fake = clean_estimate(x_t, velocity, draws.student_sigma_B)
        noised = add_noise(fake, draws.renoise_noise_BCHW, draws.renoise_sigma_B)
        return fake, nets.teacher.features(noised, draws.renoise_sigma_B, batch.prompts)


def _backward(
    fake_features: list[Tensor],
    leaves: list[Tensor],
    fake_BCHW: Tensor,
    batch: MicroBatch,
    regression_weight: float,
) -> Tensor | float:
    """Send the leaves' gradients back through the teacher into the student, together with those of
    the regression term; returns that term.
    """
    judged = [
        (features, leaf.grad)
        for features, leaf in zip(fake_features, leaves, strict=True)
        if leaf.grad is not None  # with `taps: last`, only the last block has a head
    ]
    roots: list[Tensor] = [features for features, _ in judged]
    gradients: list[Tensor | None] = [gradient for _, gradient in judged]
    regression: Tensor | float = 0.0
    if regression_weight > 0:
        regression = regression_weight * (fake_BCHW - batch.latents_BCHW).square().mean()
        roots, gradients = [*roots, batch.share * regression], [*gradients, None]
    torch.autograd.backward(roots, gradients)
    return regression


def _learn_from_data(
    nets: Nets, batch: MicroBatch, objective: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """The heads learn to call the data real and mismatched data fake, without leaping between
    neighbouring inputs (R1). Returns their loss, and their mean logit of the data.
    """
    draws, prompts = batch.draws, batch.prompts
    sigma = draws.renoise_sigma_B
    noised = add_noise(batch.latents_BCHW, draws.renoise_noise_BCHW, sigma)
    logits = _judge(nets, noised, sigma, prompts)
    loss = real_loss(logits, objective.adversarial)
    if objective.mismatched_share > 0:
        assert batch.mismatched is not None
        rows = batch.mismatched.rows
        mismatched = _judge(nets, noised[rows], sigma[rows], batch.mismatched.prompts)
        weight = objective.mismatched_share * batch.mismatched.weight
        loss = loss + weight * fake_loss(mismatched, objective.adversarial)
    if objective.r1_weight > 0:
        assert draws.near_noise_BCHW is not None
        near = noised + objective.r1_sigma * draws.near_noise_BCHW
        near_logits = _judge(nets, near, sigma, prompts)
        loss = loss + objective.r1_weight * r1_penalty(logits, near_logits)
    (batch.share * loss).backward(inputs=list(nets.heads.parameters()))
    return loss.detach(), _mean(logits)


def _judge(nets: Nets, noised_BCHW: Tensor, sigma_B: Tensor, prompts: Conditioning) -> list[Tensor]:
    """The heads' logits of noised latents; gradient reaches the heads and nothing before them."""
    with torch.no_grad(), nets.autocast():
        features = nets.teacher.features(noised_BCHW, sigma_B, prompts)
    with nets.autocast():
        return nets.heads(features, sigma_B, prompts.pooled_BP)


def _mean(logits: list[Tensor]) -> Tensor:
    """Over all places, samples and taps, detached."""
    return torch.stack([x.detach().mean() for x in logits]).mean()
