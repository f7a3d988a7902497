"""What every score and every feature space answers. Stages see only this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from schemas.report import ScoreCard


class Score(Protocol):
    """Judges pictures, each by itself, for the prompts that they were made from.

    Made with (ScoreConfig, torch.device); weights are loaded then, so that a missing one shows
    before any work.
    """

    card: ScoreCard

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """(B,) float64 of B uint8 pictures of one size; range and direction are on the card."""
        ...


class FeatureSpace(Protocol):
    """The space in which distances between sets of pictures are measured."""

    card: ScoreCard
    width: int

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        """(B, width) float32 of B uint8 pictures of one size."""
        ...
