"""One whole LADD update against an oracle written out in plain autograd: losses and every
gradient.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional as F

from schemas.config import DiscriminatorConfig, ObjectiveConfig
from stages.ladd.flow import Draws
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.update import MicroBatch, Mismatched, Nets, accumulate_gradients

OBJECTIVES = {
    "the paper's": ObjectiveConfig(),
    "softplus": ObjectiveConfig(adversarial="softplus"),
    "regression": ObjectiveConfig(regression_weight=0.7),
    "R1": ObjectiveConfig(r1_weight=50.0, r1_sigma=0.1),
    "mismatched": ObjectiveConfig(mismatched_share=0.3),
    "mismatched, softplus": ObjectiveConfig(mismatched_share=0.5, adversarial="softplus"),
}
MISMATCHED = [0, 1, 3]
"""Samples that the heads also see under the next one's prompt."""


def oracle(student, teacher, heads, x0, conditioning, draws, objective):
    """LADD's equations, one sample and one tap at a time, nothing shared with the implementation
    but the nets.
    """
    adversarial, judged = [], []
    for b in range(len(x0)):
        c = conditioning.select([b])
        t, s = draws.student_sigma_B[b], draws.renoise_sigma_B[b]
        x_t = (1 - t) * x0[b] + t * draws.student_noise_BCHW[b]
        fake = x_t - t * student.velocity(x_t[None], t[None], c)[0]

        other = conditioning.select([(b + 1) % len(x0)])

        def logits(latent, shift=0.0, b=b, c=c, s=s):
            noised = (1 - s) * latent + s * draws.renoise_noise_BCHW[b] + shift
            return heads(teacher.features(noised[None], s[None], c), s[None], c.pooled_BP)

        real, near = logits(x0[b]), logits(x0[b], objective.r1_sigma * draws.near_noise_BCHW[b])
        wrong, share = logits(x0[b], c=other), objective.mismatched_share
        others = share * (b in MISMATCHED) * len(x0) / len(MISMATCHED)
        if objective.adversarial == "hinge":
            real_cost, fake_cost, fooling_cost = (
                lambda m: F.relu(1 - m),
                lambda m: F.relu(1 + m),
                lambda m: -m,
            )
        else:
            real_cost, fake_cost, fooling_cost = (
                lambda m: -F.logsigmoid(m),
                lambda m: -F.logsigmoid(-m),
                lambda m: -F.logsigmoid(m),
            )
        fooling = [fooling_cost(m).mean() for m in logits(fake)]
        telling = [
            real_cost(r).mean() + (1 - share) * fake_cost(f).mean() + others * fake_cost(w).mean()
            for r, f, w in zip(real, logits(fake.detach()), wrong, strict=True)
        ]
        penalty = [((r - n) ** 2).mean() for r, n in zip(real, near, strict=True)]
        distance = ((fake - x0[b]) ** 2).mean()
        adversarial.append(torch.stack(fooling).mean() + objective.regression_weight * distance)
        judged.append(
            torch.stack(telling).mean() + objective.r1_weight * torch.stack(penalty).mean()
        )
    student_loss, heads_loss = torch.stack(adversarial).mean(), torch.stack(judged).mean()
    student_grads = torch.autograd.grad(
        student_loss, list(student.parameters()), retain_graph=True, allow_unused=True
    )
    return (
        student_loss,
        heads_loss,
        student_grads,
        torch.autograd.grad(heads_loss, list(heads.parameters())),
    )


def levels(shift: float, *unshifted: float) -> torch.Tensor:
    return torch.tensor([shift * t / (1 - t + shift * t) for t in unshifted])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_update_equals_plain_autograd(objective, shift, tiny_backbones, tiny_batch):
    student, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    torch.manual_seed(4)
    heads = DiscriminatorHeads(teacher.tap_widths, 24, DiscriminatorConfig(channels=8))
    draws = Draws(
        levels(shift, 1.0, 0.75, 0.5, 0.25),
        torch.randn(latents.shape),
        levels(shift, 0.9, 0.4, 0.7, 0.1),
        torch.randn(latents.shape),
        torch.randn(latents.shape),
    )
    expected = oracle(student, teacher, heads, latents, conditioning, draws, objective)
    losses = [
        accumulate_gradients(
            Nets(student, teacher, heads, contextlib.nullcontext),
            MicroBatch(
                latents[rows],
                conditioning.select(rows),
                draws.select(rows),
                share=0.5,
                mismatched=Mismatched(chosen, conditioning.select(prompts), weight),
            ),
            objective,
        )
        for rows, chosen, prompts, weight in (
            (slice(0, 2), [0, 1], [1, 2], (2 / 3) / (2 / 4)),
            (slice(2, 4), [1], [0], (1 / 3) / (2 / 4)),
        )
    ]
    torch.testing.assert_close(sum(0.5 * x.student for x in losses), expected[0])
    torch.testing.assert_close(sum(0.5 * x.discriminator for x in losses), expected[1])
    compared = 0
    for net, gradients in ((student, expected[2]), (heads, expected[3])):
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            if gradient is None:
                assert parameter.grad is None
                continue
            torch.testing.assert_close(parameter.grad, gradient, atol=2e-6, rtol=5e-4)
            compared += gradient.abs().sum() > 0
    assert compared > 100


def test_head_start_leaves_the_student_alone(tiny_backbones, tiny_batch):
    student, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    heads = DiscriminatorHeads(teacher.tap_widths, 24, DiscriminatorConfig(channels=8))
    noise = torch.randn(latents.shape)
    draws = Draws(torch.ones(4), noise, torch.full((4,), 0.5), noise)
    nets = Nets(student, teacher, heads, contextlib.nullcontext)
    accumulate_gradients(nets, MicroBatch(latents, conditioning, draws), train_student=False)
    assert all(p.grad is None for p in student.parameters())
    assert heads.heads[0].logit.weight.grad.abs().sum() > 0
