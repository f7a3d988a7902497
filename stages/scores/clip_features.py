"""CLIP's space of pictures, in which CMMD (Jayasumana et al. 2024) is defined."""

from __future__ import annotations

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import Clip, as_images


class ClipFeatures:
    """A `FeatureSpace`: CLIP's picture embedding, of unit length."""

    card = ScoreCard(
        title="CLIP features",
        explanation="CLIP's embedding of the picture, scaled to unit length.",
        low=-1,
        high=1,
        licence="the licence of the CLIP used; OpenAI's weights: MIT",
        weights="a CLIP in transformers' format; by default openai/clip-vit-large-patch14",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.clip = Clip(config, device)
        self.width = self.clip.width

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        return self.clip.embed_pictures(as_images(pictures_BHW3)).cpu().numpy()
