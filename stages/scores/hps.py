"""Human Preference Score v2 and v2.1 (Wu et al. 2023): a CLIP-H tuned on people's rankings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import Clip, as_images


class HumanPreferenceScore:
    """A `Score`: the model's plain cosine on whole pictures. HPS pads to a square with black where
    CLIP crops.
    """

    card = ScoreCard(
        title="HPS v2.1",
        explanation="Cosine of a CLIP tuned on people's rankings of pictures; mostly between 0.2 "
        "and 0.35.",
        low=-1,
        high=1,
        licence="Apache-2.0",
        weights="HPS v2.1 converted to a CLIP in transformers' format (see docs/scores.md)",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.clip = Clip(config, device)

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        size = self.clip.image_size
        padded = [
            ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, color=(0, 0, 0))
            for picture in as_images(pictures_BHW3)
        ]
        return self.clip.cosines(padded, prompts)
