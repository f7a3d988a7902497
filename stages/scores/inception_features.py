"""Inception's space of pictures, in which FID is defined (Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from schemas.report import ScoreCard
from stages.scores.inception import WIDTH, InceptionV3
from stages.scores.pretrained import find_model, in_batches, load_tensors
from stages.teachers.folder_check import opening

WEIGHTS = "inception.safetensors"


class InceptionFeatures:
    """A `FeatureSpace`: the last average pool of the Inception network that published FIDs use."""

    card = ScoreCard(
        title="Inception features",
        explanation="The 2048 pooled features of the Inception network of December 2015, which "
        "published FIDs use.",
        low=0,
        high=None,
        licence="Apache-2.0",
        weights=f"a folder with torch-fidelity's weights as {WEIGHTS} (see docs/scores.md)",
    )
    width = WIDTH

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        path = find_model(config) / WEIGHTS
        tensors = load_tensors(path, config.name)
        with torch.device("meta"):
            model = InceptionV3()
        needed = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
        kept = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
        if missing := sorted(needed - kept.keys()):
            raise ConfigError(
                f"scores.{config.name}.model: {path} lacks {len(missing)} of the network's "
                f"weights, such as {missing[0]}"
            )
        with opening(f"scores.{config.name}.model", path):
            model.to_empty(device=device).load_state_dict(kept)
        self.model = model.eval().requires_grad_(False)
        self.device = device

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        return in_batches(self._pooled, pictures_BHW3).cpu().numpy()

    @torch.no_grad()
    def _pooled(self, pictures_BHW3: np.ndarray) -> torch.Tensor:
        return self.model(torch.from_numpy(pictures_BHW3).to(self.device).permute(0, 3, 1, 2))
