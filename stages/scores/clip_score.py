"""CLIP score (Hessel et al. 2021): how well CLIP thinks a picture fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import Clip, as_images


class ClipScore:
    """A `Score`: 100 max(cos, 0), as in torchmetrics (the paper's factor is 2.5)."""

    card = ScoreCard(
        title="CLIP score",
        explanation="100 times the cosine between CLIP's embeddings of picture and prompt, "
        "negative values set to 0.",
        low=0,
        high=100,
        licence="the licence of the CLIP used; OpenAI's weights: MIT",
        weights="a CLIP in transformers' format; by default openai/clip-vit-large-patch14",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.clip = Clip(config, device)

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return 100 * self.clip.cosines(as_images(pictures_BHW3), prompts).clip(min=0)
