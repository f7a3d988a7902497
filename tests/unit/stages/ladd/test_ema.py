"""The averaged weights: on their own device too the same numbers, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.distributed.tensor import DTensor

from schemas.config import DistillConfig
from stages.ladd.backbone import Conditioning
from stages.ladd.ema import ExponentialAverage
from stages.ladd.parallelize import spread
from stages.ladd.trainer import (
    LaddTrainer,
)
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.training import on_ranks


def test_average_follows_and_swaps_back():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    average = ExponentialAverage(net, 0.5)
    torch.nn.init.ones_(net.weight)
    for step in range(20, 22):
        average.update(net, step)
    assert average.averages[0].item() == pytest.approx(0.75)
    average.swap_with(net)
    assert net.weight.item() == pytest.approx(0.75)
    average.swap_with(net)
    assert net.weight.item() == 1 and average.averages[0].item() == pytest.approx(0.75)


CPU = torch.device("cpu")
STEPS, HALF = 6, 3


def build() -> SD3Backbone:
    torch.manual_seed(0)
    return SD3Backbone(
        SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=6,
            joint_attention_dim=24,
            caption_projection_dim=96,
            pooled_projection_dim=24,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
    )


def make_trainer(world: int = 1, **changes: Any) -> LaddTrainer:
    config = DistillConfig(
        **{
            "steps": STEPS,
            "global_batch": 4,
            "workers": world,
            "shard_over": world,
            "precision": "float32",
            "learning_rate": 1e-3,
            "ema_decay": 0.9,
            "discriminator": {"channels": 8, "learning_rate": 1e-3},
            "student_time": {"warmup_steps": 0},
        }
        | changes
    )
    student, teacher = build(), build().requires_grad_(False)
    spread(student, CPU, config.shard_over, torch.float32)
    return LaddTrainer(student, teacher, 24, config, CPU)


def train(trainer: LaddTrainer, steps: range, rank: int = 0, world: int = 1) -> list[float]:
    assert trainer.step == steps.start
    losses = []
    rows = slice(rank * 4 // world, (rank + 1) * 4 // world)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        latents = torch.randn(4, 4, 8, 8, generator=generator)
        tokens = torch.randn(4, 5, 24, generator=generator)
        text = Conditioning(tokens, torch.randn(4, 24, generator=generator), null_tokens=7)
        metrics = trainer.update(latents[rows], text.select(rows))
        losses += [metrics["student_loss"], metrics["student_grad_norm"]]
    return losses


def whole(tensors: Any) -> list[Tensor]:
    return [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]


def test_an_average_on_its_own_device_has_the_same_numbers(tmp_path):
    here, apart = make_trainer(), make_trainer(ema_device="cpu")
    assert train(here, range(HALF)) == train(apart, range(HALF))
    pairs = list(zip(here.average.averages, apart.average.averages, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    weights = [p.clone() for p in apart.student.parameters()]
    assert any(not torch.equal(a, p) for (a, _), p in zip(pairs, weights, strict=True))
    apart.average.swap_with(apart.student)
    swapped = list(apart.student.parameters())
    assert all(torch.equal(a, p) for (a, _), p in zip(pairs, swapped, strict=True))
    apart.average.swap_with(apart.student)
    assert all(torch.equal(p, w) for p, w in zip(swapped, weights, strict=True))
    # A checkpoint does not know where the average lived.
    apart.save(tmp_path)
    here = make_trainer()
    here.load(tmp_path)
    assert train(here, range(HALF, STEPS)) == train(apart, range(HALF, STEPS))


def _rank(rank: int, folder: str) -> None:
    here, apart = make_trainer(2), make_trainer(2, ema_device="cpu")
    traces = [train(trainer, range(HALF), rank, 2) for trainer in (here, apart)]
    averages = [whole(trainer.average.averages) for trainer in (here, apart)]
    same = all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
    if rank == 0:
        found = {"traces": traces, "average": same}
        (Path(folder) / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, _rank, str(folder))
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_an_average_apart_is_sharded_like_its_weights(on_two):
    found = on_two[1]
    assert found["traces"][0] == found["traces"][1] and found["average"] is True
