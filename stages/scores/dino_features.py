"""DINOv2's space of pictures (Oquab et al. 2023), learnt without labels. Its distances agree with
people better than Inception's (Stein et al. 2023).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from schemas.report import ScoreCard
from stages.scores.clip import as_images
from stages.scores.pretrained import find_model, in_batches, load_image_processor, load_model


class DinoFeatures:
    """A `FeatureSpace`: the class token after the last norm. Supports DINOv2, with or without
    registers, and DINOv3.
    """

    card = ScoreCard(
        title="DINOv2 features",
        explanation="The class token of a DINO vision transformer after its last norm.",
        low=None,
        high=None,
        licence="the licence of the DINO used; DINOv2: Apache-2.0",
        weights="a DINOv2 or DINOv3 in transformers' format; by default facebook/dinov2-large",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        folder = find_model(config)
        self.device = device
        self.model = load_model(
            AutoModel, folder, config.name, device, spare=("embeddings.mask_token",)
        )
        if not self.model.config.model_type.startswith("dinov"):
            raise ConfigError(
                f"scores.{config.name}.model: {folder} holds a model of type "
                f"{self.model.config.model_type!r}, not a DINOv2 or DINOv3"
            )
        self.processor = load_image_processor(folder, config.name)
        self.width = self.model.config.hidden_size

    def features(self, pictures_BHW3: np.ndarray) -> np.ndarray:
        return in_batches(self._class_tokens, pictures_BHW3).cpu().numpy()

    @torch.no_grad()
    def _class_tokens(self, pictures_BHW3: np.ndarray) -> Tensor:
        inputs = self.processor(images=as_images(pictures_BHW3), return_tensors="pt")
        return self.model(**inputs.to(self.device)).last_hidden_state[:, 0]
