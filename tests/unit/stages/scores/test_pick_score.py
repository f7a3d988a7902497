"""PickScore against transformers' own forward pass."""

from __future__ import annotations

import numpy as np

from tests.support.scores import PROMPTS, as_images, by_transformers, noise, score


def test_pick_score_equals_transformers_logits(tiny_clip):
    logits = by_transformers(tiny_clip, as_images(noise()), PROMPTS).logits_per_image
    scores = score("pick_score", tiny_clip).judge(noise(), PROMPTS)
    np.testing.assert_allclose(scores, logits.diagonal(), rtol=1e-4)
