"""One whole LADD update against an oracle written out in plain autograd: losses and every
gradient.
"""

from __future__ import annotations

import contextlib

import torch
from torch.nn import functional as F

from stages.ladd.flow import Draws
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.update import accumulate_gradients


def oracle(student, teacher, heads, x0, conditioning, draws):
    """LADD's equations, one sample and one tap at a time, nothing shared with the implementation
    but the nets.
    """
    adversarial, judged = [], []
    for b in range(len(x0)):
        c = conditioning.select([b])
        t, s = draws.student_sigma_B[b], draws.renoise_sigma_B[b]
        x_t = (1 - t) * x0[b] + t * draws.student_noise_BCHW[b]
        fake = x_t - t * student.velocity(x_t[None], t[None], c)[0]

        def logits(latent, b=b, c=c, s=s):
            noised = (1 - s) * latent + s * draws.renoise_noise_BCHW[b]
            return heads(teacher.features(noised[None], s[None], c), s[None], c.pooled_BP)

        adversarial.append(torch.stack([-m.mean() for m in logits(fake)]).mean())
        pairs = zip(logits(x0[b]), logits(fake.detach()), strict=True)
        judged.append(
            torch.stack([F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in pairs]).mean()
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


def test_update_equals_plain_autograd(tiny_backbones, tiny_batch):
    student, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    torch.manual_seed(4)
    heads = DiscriminatorHeads(teacher.tap_widths, 24, 8)
    draws = Draws(
        torch.tensor([1.0, 0.75, 0.5, 0.25]),
        torch.randn(latents.shape),
        torch.tensor([0.9, 0.4, 0.7, 0.1]),
        torch.randn(latents.shape),
    )
    expected = oracle(student, teacher, heads, latents, conditioning, draws)
    losses = [
        accumulate_gradients(
            student,
            teacher,
            heads,
            latents[rows],
            conditioning.select(rows),
            Draws(*(getattr(draws, name)[rows] for name in draws.__dataclass_fields__)),
            share=0.5,
            autocast=contextlib.nullcontext,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(0.5 * x.student for x in losses), expected[0])
    torch.testing.assert_close(sum(0.5 * x.discriminator for x in losses), expected[1])
    compared = 0
    for net, gradients in ((student, expected[2]), (heads, expected[3])):
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            if gradient is None:
                assert parameter.grad is None
                continue
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=2e-4)
            compared += gradient.abs().sum() > 0
    assert compared > 100


def test_head_start_leaves_the_student_alone(tiny_backbones, tiny_batch):
    student, teacher = tiny_backbones
    latents, conditioning = tiny_batch
    heads = DiscriminatorHeads(teacher.tap_widths, 24, 8)
    noise = torch.randn(latents.shape)
    draws = Draws(torch.ones(4), noise, torch.full((4,), 0.5), noise)
    accumulate_gradients(
        student,
        teacher,
        heads,
        latents,
        conditioning,
        draws,
        train_student=False,
        autocast=contextlib.nullcontext,
    )
    assert all(p.grad is None for p in student.parameters())
    assert heads.heads[0].logit.weight.grad.abs().sum() > 0
