"""CLIP's two towers (Radford et al. 2021), from transformers; several scores use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from schemas.config import ScoreConfig
from stages.scores.pretrained import (
    find_model,
    in_batches,
    load_image_processor,
    load_model,
    load_tokenizer,
)


class Clip:
    """Pictures and prompts as unit vectors of width D in CLIP's common space."""

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        self.folder = find_model(config)
        self.device = device
        self.model = load_model(CLIPModel, self.folder, config.name, device)
        self.processor = load_image_processor(self.folder, config.name)
        self.tokenizer = load_tokenizer(self.folder, config.name)
        self.width = self.model.config.projection_dim
        self.image_size = self.model.config.vision_config.image_size

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embed pictures: (B, D).

        The model's folder says how pictures are prepared, usually resized and cropped to a square.
        """
        return in_batches(self._embed_pictures, pictures)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts: (B, D). Text beyond the model's maximum length is cut off."""
        return in_batches(self._embed_prompts, prompts)

    def cosines(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return the cosine between each picture and its own prompt: (B,) float64."""
        cosines_B = (self.embed_pictures(pictures) * self.embed_prompts(prompts)).sum(-1)
        return cosines_B.double().cpu().numpy()

    @torch.no_grad()
    def _embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return F.normalize(self.model.get_image_features(**inputs).pooler_output, dim=-1)

    @torch.no_grad()
    def _embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        features = self.model.get_text_features(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        )
        return F.normalize(features.pooler_output, dim=-1)


def as_images(pictures_BHW3: np.ndarray) -> list[Image.Image]:
    """Convert uint8 pictures to PIL images, the input of transformers' processors."""
    return [Image.fromarray(picture) for picture in pictures_BHW3]
