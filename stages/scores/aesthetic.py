"""LAION's improved aesthetic predictor (Schuhmann 2022): how people would rate the looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import Clip, as_images
from stages.scores.pretrained import load_linear_head

HEAD = "aesthetic_head.safetensors"


class Aesthetic:
    """A `Score`: a linear head on CLIP's embedding of the picture; it ignores the prompt."""

    card = ScoreCard(
        title="aesthetic score",
        explanation="People's rating of a picture's looks from 1 to 10, predicted from its CLIP "
        "embedding; the prompt is ignored.",
        low=None,
        high=None,
        licence="head Apache-2.0; OpenAI's CLIP: MIT",
        weights=f"a folder with CLIP ViT-L/14 in transformers' format and the head as {HEAD}",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.clip = Clip(config, device)
        self.head = load_linear_head(self.clip.folder / HEAD, config.name, self.clip.width, device)

    @torch.no_grad()
    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        scores_B1 = self.head(self.clip.embed_pictures(as_images(pictures_BHW3)))
        return scores_B1.squeeze(-1).double().cpu().numpy()
