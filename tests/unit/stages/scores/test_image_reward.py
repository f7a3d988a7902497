"""ImageReward against transformers' own BLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from stages.shapes_world.train_text import build_tokenizer
from tests.support.scores import PROMPTS, as_images, noise, save_head, score


def save_blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "encoder_hidden_size": 16}
    config = BlipConfig(
        text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}
    )
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


def test_image_reward_is_the_head_on_blips_reading(tmp_path):
    from transformers import BlipForImageTextRetrieval, CLIPImageProcessorPil, CLIPTokenizer

    head = save_head(save_blip(tmp_path) / "reward_head.safetensors", 16)
    blip = BlipForImageTextRetrieval.from_pretrained(tmp_path).eval()
    images = CLIPImageProcessorPil.from_pretrained(tmp_path)(
        as_images(noise()), return_tensors="pt"
    )
    words = CLIPTokenizer.from_pretrained(tmp_path)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        read = blip(words.input_ids, images.pixel_values, attention_mask=words.attention_mask)
        raw = head(read.question_embeds[:, 0]).squeeze(-1).numpy()
    rewards = score("image_reward", tmp_path).judge(noise(), PROMPTS)
    np.testing.assert_allclose(rewards, (raw - 0.16717363) / 1.03333950, rtol=1e-4)
    assert np.ptp(rewards) > 0.001


def test_image_reward_does_without_blips_own_heads(tmp_path):
    from safetensors.torch import load_file

    save_head(save_blip(tmp_path) / "reward_head.safetensors", 16)
    before = score("image_reward", tmp_path).judge(noise(), PROMPTS)
    unused = ("itm_head", "text_proj", "vision_proj")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if not key.startswith(unused)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    np.testing.assert_array_equal(score("image_reward", tmp_path).judge(noise(), PROMPTS), before)
