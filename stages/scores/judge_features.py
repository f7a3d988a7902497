"""The feature space of the shapes world: the judge's maps, pooled over the picture."""

from __future__ import annotations

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.attributes import JUDGE, as_pixels
from stages.shapes_world.judge import FEATURE_WIDTH, ShapesJudge


class JudgeFeatures:
    """A `FeatureSpace`: mean and standard deviation of each of the judge's 64 maps."""

    card = ScoreCard(
        title="judge features",
        explanation="Mean and standard deviation over the picture of each of the 64 feature maps "
        "of the shapes world's detector.",
        low=None,
        high=None,
        licence="Apache-2.0, like this project",
        weights="embedded: stages/shapes_world/weights/judge.safetensors",
    )
    width = 2 * FEATURE_WIDTH

    def __init__(self, _config: ScoreConfig, device: torch.device) -> None:
        self.judge_net = ShapesJudge.load(JUDGE).to(device)
        self.device = device

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        return self.judge_net.features(as_pixels(pictures_BHW3, self.device)).cpu().numpy()
