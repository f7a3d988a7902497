"""Scores on drawn scenes and on tiny random models, and transformers' own forward passes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from schemas.config import ScoreConfig
from stages.scores import open_features, open_score
from stages.shapes_world.captions import phrase, sample_spec
from stages.shapes_world.scenes import render, sample_scene
from stages.shapes_world.train_text import build_tokenizer

CPU = torch.device("cpu")
BUCKETS = [(64, 64), (80, 48), (48, 80), (96, 40), (40, 96)]
PROMPTS = ["a red circle", "a big blue ring on black", "a square left of a cross"]


def score(name: str, model: Path | None = None):
    return open_score(ScoreConfig(name=name, model=str(model) if model else None), CPU)


def space(name: str, model: Path | None = None):
    return open_features(ScoreConfig(name=name, model=str(model) if model else None), CPU)


def noise(count: int = 3, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def captioned(size: tuple[int, int], count: int) -> tuple[np.ndarray, list[str]]:
    rng = random.Random(f"scores/{size}")
    specs = [sample_spec(rng) for _ in range(count)]
    pictures = render([sample_scene(spec, *size, rng) for spec in specs])
    return pictures, [phrase(spec, rng) for spec in specs]


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
        logit_scale_init_value=3.0,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


@torch.no_grad()
def by_transformers(folder: Path, pictures: list[Image.Image], prompts: list[str]):
    """The model's own output, processed by CLIPProcessor."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    )
    inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    return CLIPModel.from_pretrained(folder).eval()(**inputs)


def as_images(pictures: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures]


def save_head(path: Path, width: int) -> torch.nn.Sequential:
    """A head as LAION and ImageReward keep theirs: linear layers with dropout between them."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(
        torch.nn.Linear(width, 10),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(10, 6),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(6, 1),
    )
    save_file({f"layers.{key}": value for key, value in layers.state_dict().items()}, path)
    return layers.eval()
