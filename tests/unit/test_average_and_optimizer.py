"""The average on another device, and the optimizer with moments of a byte: the same numbers, exact
resume, on one rank and on two.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, distributed, multiprocessing
from torch.distributed.tensor import DTensor

from schemas.config import DistillConfig, PipelineConfig
from schemas.errors import ConfigError
from stages import distill
from stages.ladd.backbone import Conditioning
from stages.ladd.parallelize import spread
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone

CPU = torch.device("cpu")
STEPS, HALF = 6, 3


def build() -> SD3Backbone:
    """Wide enough that most weights are worth a moment of a byte, also when cut in two."""
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


def test_moments_take_a_byte_and_train_alike():
    plain, small = make_trainer(), make_trainer(optimizer="adamw8bit")
    expected, found = train(plain, range(STEPS)), train(small, range(STEPS))
    assert found == pytest.approx(expected, rel=0.05) and found != expected

    def bytes_of(trainer: LaddTrainer) -> int:
        tensors = trainer._tensors()
        moments = [t for n, t in tensors.items() if n.startswith("student_optimizer.")]
        return sum(t.numel() * t.element_size() for t in moments)

    assert bytes_of(small) < 0.3 * bytes_of(plain)
    assert isinstance(small.heads_optimizer, torch.optim.AdamW)


def test_a_run_with_moments_of_a_byte_resumes_exactly(tmp_path):
    straight = make_trainer(optimizer="adamw8bit")
    train(straight, range(HALF))
    straight.save(tmp_path)
    expected = train(straight, range(HALF, STEPS))
    resumed = make_trainer(optimizer="adamw8bit")
    resumed.load(tmp_path)
    assert train(resumed, range(HALF, STEPS)) == expected
    # Without its moments it would go another way: what was loaded matters.
    fresh = make_trainer(optimizer="adamw8bit")
    fresh.load(tmp_path)
    fresh.student_optimizer.state.clear()
    assert train(fresh, range(HALF, STEPS)) != expected


def test_a_missing_library_is_named_before_anything_starts(tiny_config, monkeypatch):
    settings = tiny_config.model_dump(mode="json")
    settings["distill"]["optimizer"] = "adamw8bit"
    config = PipelineConfig.model_validate(settings)
    distill.check(config)
    monkeypatch.setattr(distill, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"distill\.optimizer: adamw8bit needs torchao"):
        distill.check(config)


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    here, apart = make_trainer(2), make_trainer(2, ema_device="cpu")
    traces = [train(trainer, range(HALF), rank, 2) for trainer in (here, apart)]
    averages = [whole(trainer.average.averages) for trainer in (here, apart)]
    same = all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
    small = make_trainer(2, optimizer="adamw8bit")
    first = train(small, range(HALF), rank, 2)
    small.save(Path(folder) / "small")
    second = train(small, range(HALF, STEPS), rank, 2)
    resumed = make_trainer(2, optimizer="adamw8bit")
    resumed.load(Path(folder) / "small")
    again = train(resumed, range(HALF, STEPS), rank, 2)
    if rank == 0:
        found = {"traces": traces, "average": same, "small": [first, second, again]}
        (Path(folder) / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (port, str(folder)), nprocs=2)
    return folder, json.loads((folder / "found.json").read_text())


def test_an_average_apart_is_sharded_like_its_weights(on_two):
    found = on_two[1]
    assert found["traces"][0] == found["traces"][1] and found["average"] is True


def test_moments_of_a_byte_resume_on_two_ranks_and_on_one(on_two):
    folder, found = on_two
    first, second, again = found["small"]
    assert again == second
    alone = make_trainer(optimizer="adamw8bit")
    assert first == pytest.approx(train(alone, range(HALF)), rel=2e-2)
    moved = make_trainer(optimizer="adamw8bit")
    moved.load(folder / "small")
    assert train(moved, range(HALF, STEPS)) == pytest.approx(second, rel=2e-2)
