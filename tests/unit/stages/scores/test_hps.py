"""HPS against transformers' own forward pass."""

from __future__ import annotations

import numpy as np

from tests.support.scores import PROMPTS, as_images, by_transformers, noise, score


def test_hps_is_the_cosine_on_whole_pictures_padded_with_black(tiny_clip):
    wide = noise(3, 16, 32)
    padded = np.zeros((3, 32, 32, 3), np.uint8)
    padded[:, 8:24] = wide
    logits = by_transformers(tiny_clip, as_images(padded), PROMPTS).logits_per_image
    scores = score("hps", tiny_clip).judge(wide, PROMPTS)
    np.testing.assert_allclose(scores, logits.diagonal().numpy() / np.exp(3.0), rtol=1e-4)
