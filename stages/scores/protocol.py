"""The interface of every score and every feature space. Stages use only this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from schemas.report import ScoreCard


class Score(Protocol):
    """Judges each picture separately for the prompt that it was made from.

    Constructed with (ScoreConfig, torch.device). The constructor loads the weights, so that a
    missing file is reported before any work starts.
    """

    card: ScoreCard

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Score B uint8 pictures of one size: (B,) float64. The card gives range and direction."""
        ...


class FeatureSpace(Protocol):
    """The space in which distances between sets of pictures are measured."""

    card: ScoreCard
    width: int

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        """Embed B uint8 pictures of one size: (B, width) float32."""
        ...
