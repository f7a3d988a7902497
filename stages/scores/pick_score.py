"""PickScore (Kirstain et al. 2023): a CLIP-H tuned on what people picked in Pick-a-Pic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import Clip, as_images


class PickScore:
    """A `Score`: the model's scaled cosine. The difference between two pictures of a prompt is the
    log-odds that people prefer one to the other.
    """

    card = ScoreCard(
        title="PickScore",
        explanation="Scaled cosine of a CLIP tuned on people's choices; a difference of 1 between "
        "two pictures of a prompt means odds of e to 1.",
        low=-100,
        high=100,
        licence="MIT",
        weights="a CLIP in transformers' format; by default yuvalkirstain/PickScore_v1",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.clip = Clip(config, device)
        self.scale = self.clip.model.logit_scale.exp().item()

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return self.scale * self.clip.cosines(as_images(pictures_BHW3), prompts)
