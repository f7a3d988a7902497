"""Applies every score and every feature space of an evaluation to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from schemas.config import EvalConfig
from stages.scores import open_features, open_score
from stages.scores.patches import patches_of


@dataclass(frozen=True)
class Measured:
    """B pictures of one size as numbers."""

    scores: dict[str, np.ndarray]
    """Values (B,) by score."""
    features: dict[str, np.ndarray]
    """(B, F) by feature space, the one of `eval.features` first."""
    patches: np.ndarray
    """(B * crops, F): features of crops, those of one picture together, in the first space."""

    @property
    def count(self) -> int:
        """B"""
        return len(next(iter(self.features.values())))


class Meter:
    """The scores and spaces that a configuration names, loaded on `device`.

    Raises ConfigError for a missing or incomplete model.
    """

    def __init__(self, config: EvalConfig, device: torch.device) -> None:
        spaces = (config.features, *config.more_features)
        self._scores = {score.name: open_score(score, device) for score in config.scores}
        self._spaces = {space.name: open_features(space, device) for space in spaces}
        self._main = self._spaces[config.features.name]

    def measure(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> Measured:
        return Measured(
            scores={n: score.judge(pictures_BHW3, prompts) for n, score in self._scores.items()},
            features={n: space.features(pictures_BHW3) for n, space in self._spaces.items()},
            patches=self._main.features(patches_of(pictures_BHW3)),
        )

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        """(B, F): features in the space of `eval.features`, enough for diversity."""
        return self._main.features(pictures_BHW3)
