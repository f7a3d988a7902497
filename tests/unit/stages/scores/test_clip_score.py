"""CLIPScore against transformers' own forward pass."""

from __future__ import annotations

import numpy as np

from tests.support.scores import PROMPTS, as_images, by_transformers, noise, score


def test_clip_score_equals_transformers_own(tiny_clip):
    logits = by_transformers(tiny_clip, as_images(noise()), PROMPTS).logits_per_image
    cosines = logits.diagonal().numpy() / np.exp(3.0)
    scores = score("clip_score", tiny_clip).judge(noise(), PROMPTS)
    assert scores.dtype == np.float64 and np.ptp(cosines) > 0.01
    np.testing.assert_allclose(scores, 100 * cosines.clip(0), rtol=1e-4, atol=1e-5)


def test_clip_score_of_the_opposite_is_zero(tiny_clip):
    clip_score = score("clip_score", tiny_clip)
    before = clip_score.judge(noise(), PROMPTS)
    assert (before > 0).any()
    clip_score.clip.model.visual_projection.weight.neg_()
    assert (clip_score.judge(noise(), PROMPTS)[before > 0] == 0).all()
