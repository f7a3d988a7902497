"""ImageReward (Xu et al. 2023): BLIP reads prompt and picture together, a head rates the match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import BlipForImageTextRetrieval

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.clip import as_images
from stages.scores.pretrained import (
    find_model,
    in_batches,
    load_image_processor,
    load_linear_head,
    load_model,
    load_tokenizer,
)

HEAD = "reward_head.safetensors"
_MEAN, _DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the raw rewards over ImageReward's validation set, as published by its authors."""
_MAX_TOKENS = 35


class ImageReward:
    """A `Score`: a linear head on BLIP's multimodal reading of the prompt, standardised."""

    card = ScoreCard(
        title="ImageReward",
        explanation="How much people would like the picture for the prompt, predicted with BLIP; "
        "mean 0 and standard deviation 1 over ImageReward's validation set.",
        low=None,
        high=None,
        licence="Apache-2.0; BLIP: BSD-3-Clause",
        weights="a folder with BLIP (image-text retrieval) in transformers' format and the head as "
        f"{HEAD}",
    )

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        folder = find_model(config)
        self.device = device
        unused = ("itm_head.", "text_proj.", "vision_proj.")
        self.blip = load_model(BlipForImageTextRetrieval, folder, config.name, device, spare=unused)
        width = self.blip.config.text_config.hidden_size
        self.head = load_linear_head(folder / HEAD, config.name, width, device)
        self.processor = load_image_processor(folder, config.name)
        self.tokenizer = load_tokenizer(folder, config.name)

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        raw_B = in_batches(self._raw_rewards, pictures_BHW3, prompts)
        return (raw_B.double().cpu().numpy() - _MEAN) / _DEVIATION

    @torch.no_grad()
    def _raw_rewards(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> Tensor:
        images = self.processor(images=as_images(pictures_BHW3), return_tensors="pt")
        patches_BND = self.blip.vision_model(**images.to(self.device)).last_hidden_state
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        read_BLD = self.blip.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches_BND,
            encoder_attention_mask=torch.ones(patches_BND.shape[:2], device=self.device),
        ).last_hidden_state
        return self.head(read_BLD[:, 0]).squeeze(-1)
