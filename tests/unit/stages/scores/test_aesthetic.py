"""The aesthetic score: a head on CLIP's picture embedding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError
from tests.support.scores import (
    PROMPTS,
    as_images,
    by_transformers,
    noise,
    save_clip,
    save_head,
    score,
)


def test_aesthetic_score_is_the_head_on_clips_picture_embedding(tmp_path):
    head = save_head(save_clip(tmp_path) / "aesthetic_head.safetensors", 12)
    embeddings = by_transformers(tmp_path, as_images(noise()), PROMPTS).image_embeds
    aesthetic = score("aesthetic", tmp_path)
    with torch.no_grad():
        expected = head(embeddings).squeeze(-1)
    np.testing.assert_allclose(aesthetic.judge(noise(), PROMPTS), expected, rtol=1e-4)
    np.testing.assert_array_equal(
        aesthetic.judge(noise(), PROMPTS), aesthetic.judge(noise(), PROMPTS[::-1])
    )


def test_a_head_that_is_missing_or_of_another_width_is_said_so(tmp_path):
    save_clip(tmp_path)
    with pytest.raises(ConfigError, match=r"aesthetic_head\.safetensors cannot be loaded"):
        score("aesthetic", tmp_path)
    save_head(tmp_path / "aesthetic_head.safetensors", 20)
    with pytest.raises(ConfigError, match="from width 12 down to 1, found widths"):
        score("aesthetic", tmp_path)
