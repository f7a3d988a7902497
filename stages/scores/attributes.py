"""Attribute accuracy in the shapes world: does the picture show everything its caption states?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from schemas.report import ScoreCard
from stages.shapes_world.captions import CaptionError, SceneSpec, parse
from stages.shapes_world.judge import ShapesJudge, shows_all

JUDGE = Path(__file__).parents[1] / "shapes_world" / "weights" / "judge.safetensors"


class Attributes:
    """A `Score`: 1 when the trained judge sees every attribute that the caption states, else 0."""

    card = ScoreCard(
        title="all attributes right",
        explanation="Share of pictures in which a trained detector sees every attribute that the "
        "caption states: count, colours, shapes, sizes, place or relation, background.",
        low=0,
        high=1,
        licence="Apache-2.0, like this project",
        weights="embedded: stages/shapes_world/weights/judge.safetensors",
    )

    def __init__(self, _config: ScoreConfig, device: torch.device) -> None:
        self.judge_net = ShapesJudge.load(JUDGE).to(device)
        self.device = device

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        specs = [read_caption(prompt) for prompt in prompts]
        seen = self.judge_net.look(as_pixels(pictures_BHW3, self.device))
        return np.array(list(map(shows_all, seen, specs)), np.float64)


def read_caption(prompt: str) -> SceneSpec:
    """Parse what a prompt states. Raises ConfigError outside the grammar of the shapes world."""
    try:
        return parse(prompt)
    except CaptionError as error:
        raise ConfigError(
            f"the scores attributes and layout judge only captions of the shapes world: {error}"
        ) from error


def as_pixels(pictures_BHW3: np.ndarray, device: torch.device) -> Tensor:
    """Convert uint8 pictures to the input of the judge's network: (B, 3, H, W) in [-1, 1].

    Raises ConfigError unless both sides are divisible by 8.
    """
    height, width = pictures_BHW3.shape[1:3]
    if height % 8 or width % 8:
        raise ConfigError(
            f"the judge of the shapes world takes pictures with sides divisible by 8, not "
            f"{width}x{height}"
        )
    return torch.from_numpy(pictures_BHW3).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
