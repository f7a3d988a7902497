"""DINOv2's class token as a feature space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError
from tests.support.scores import as_images, noise, save_clip, space


def test_dino_features_are_the_class_token(tmp_path):
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
        )
    ).eval()
    processor = BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**processor(as_images(noise()), return_tensors="pt")).pooler_output
    dino = space("dino_features", tmp_path)
    features = dino.features(noise())
    assert features.shape == (3, dino.width) == (3, 16) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


def test_dino_features_of_another_model_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds a model of type 'clip', not a DINOv2"):
        space("dino_features", save_clip(tmp_path))
