"""The discriminator heads: what they see, and what they do not."""

from __future__ import annotations

import torch

from schemas.config import (
    DiscriminatorConfig,
)
from stages.ladd.heads import DiscriminatorHeads, channel_moments, time_embedding


def test_heads_are_conditioned_on_noise_level_and_text_and_see_space():
    torch.manual_seed(0)
    heads = DiscriminatorHeads([16, 16], 24, DiscriminatorConfig(channels=8))
    maps = [torch.randn(2, 16, 4, 6) for _ in range(2)]
    sigma, pooled = torch.tensor([0.2, 0.9]), torch.randn(2, 24)
    out = heads(maps, sigma, pooled)
    assert [x.shape for x in out] == [(2, 4, 6)] * 2
    assert not torch.allclose(out[0], heads(maps, sigma.flip(0), pooled)[0])
    assert not torch.allclose(out[0], heads(maps, sigma, pooled.flip(0))[0])
    moved = maps[0].clone()
    moved[:, :, 0, 0] += 5
    changed = (heads.heads[0](moved, sigma, pooled) - out[0]).abs()
    assert (changed[:, :3, :3].mean((1, 2)) > 1.5 * changed[:, :, 4:].mean((1, 2))).all()


def test_heads_do_not_mix_samples():
    torch.manual_seed(0)
    heads = DiscriminatorHeads([16], 24, DiscriminatorConfig(channels=8))
    x, sigma, pooled = torch.randn(3, 16, 4, 4), torch.rand(3), torch.randn(3, 24)
    whole = heads([x], sigma, pooled)[0]
    torch.testing.assert_close(whole[1:2], heads([x[1:2]], sigma[1:2], pooled[1:2])[0])


def test_calibrated_heads_see_every_channel_alike():
    torch.manual_seed(0)
    scales = torch.logspace(-2, 3, 16)[:, None, None]
    maps = [30 * scales + scales * torch.randn(6, 16, 4, 6) for _ in range(2)]
    heads = DiscriminatorHeads([16, 16], 24, DiscriminatorConfig(channels=8))
    parts = [channel_moments([x[rows] for x in maps]) for rows in (slice(0, 2), slice(2, 6))]
    heads.calibrate(sum(parts))
    for head, x in zip(heads.heads, maps, strict=True):
        seen = head.norm(x).transpose(0, 1).flatten(1)
        torch.testing.assert_close(seen.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
        torch.testing.assert_close(seen.std(1, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_a_channel_that_never_moves_stays_finite():
    heads = DiscriminatorHeads([4], 24, DiscriminatorConfig(channels=8))
    still = torch.full((2, 4, 3, 3), 7.0)
    heads.calibrate(channel_moments([still]))
    assert torch.equal(heads.heads[0].norm(still), torch.zeros_like(still))


def test_time_embedding_tells_levels_apart():
    embedded = time_embedding(torch.linspace(0, 1, 101))
    assert embedded.shape == (101, 32)
    assert torch.pdist(embedded).min() > 0.01


def heads_of(**changes) -> DiscriminatorHeads:
    torch.manual_seed(0)
    return DiscriminatorHeads([16, 16], 24, DiscriminatorConfig(channels=8, **changes))


def judged(heads: DiscriminatorHeads, features, sigma: float, pooled: torch.Tensor):
    with torch.no_grad():
        return heads(features, torch.full((2,), sigma), pooled)


def test_heads_may_sit_behind_the_last_block_alone():
    first, last, pooled = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6), torch.randn(2, 24)
    heads = heads_of(taps="last")
    (logits,) = judged(heads, [first, last], 0.5, pooled)
    assert logits.shape == (2, 4, 6)
    torch.testing.assert_close(logits, judged(heads, [0 * first, last], 0.5, pooled)[0])
    assert not torch.equal(logits, judged(heads, [first, 0 * last], 0.5, pooled)[0])


def test_unconditioned_heads_know_neither_level_nor_prompt():
    features = [torch.randn(2, 16, 4, 6) for _ in range(2)]
    heads = heads_of(conditioned=False)
    for first, second in zip(
        judged(heads, features, 0.1, torch.randn(2, 24)),
        judged(heads, features, 0.9, torch.randn(2, 24)),
        strict=True,
    ):
        torch.testing.assert_close(first, second)


def test_heads_of_one_dimension_see_along_the_row_of_tokens_alone():
    heads, features = heads_of(convolutions="1d"), [torch.randn(1, 16, 8, 8) for _ in range(2)]
    features[0].requires_grad_()
    heads(features, torch.tensor([0.5]), torch.randn(1, 24))[0][0, 4, 4].backward()
    # Group norms mix all places a little: what lies in the kernels' reach counts far more.
    reach = features[0].grad.abs().sum(1)[0].flatten()
    place = 4 * 8 + 4
    assert reach[place - 8 : place + 9].min() > 2 * reach[:16].max()
    assert reach[place - 8 : place + 9].mean() > 5 * reach[:16].mean()
