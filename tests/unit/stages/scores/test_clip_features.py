"""CLIP's picture embeddings as a feature space."""

from __future__ import annotations

import numpy as np

from tests.support.scores import PROMPTS, as_images, by_transformers, noise, space


def test_clip_features_are_unit_picture_embeddings(tiny_clip):
    clip_features = space("clip_features", tiny_clip)
    features = clip_features.features(noise())
    expected = by_transformers(tiny_clip, as_images(noise()), PROMPTS).image_embeds
    assert features.shape == (3, clip_features.width) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
