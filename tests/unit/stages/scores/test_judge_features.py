"""The feature space of the embedded judge."""

from __future__ import annotations

import numpy as np
import torch

from tests.support.scores import captioned, space


def test_judge_features_are_those_of_the_judge():
    from stages.shapes_world.judge import ShapesJudge
    from stages.teachers.shapes import WEIGHTS

    pictures, _ = captioned((80, 48), 4)
    features = space("judge_features").features(pictures)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = ShapesJudge.load(WEIGHTS / "judge.safetensors").features(pixels)
    assert features.shape == (4, space("judge_features").width) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-5)
