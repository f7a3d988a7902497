"""A trainer of the tiny backbones."""

from __future__ import annotations

import torch

from schemas.config import (
    DistillConfig,
)
from stages.ladd.trainer import LaddTrainer


def plain_trainer(backbones, **changes) -> LaddTrainer:
    config = DistillConfig(
        **{"steps": 4, "global_batch": 4, "precision": "float32", "learning_rate": 1e-3} | changes
    )
    return LaddTrainer(*backbones, 24, config, torch.device("cpu"))
