"""The embedded teacher's own training: every part, killed by a short clock and continued
exactly.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from stages.shapes_world.state_file import load_state
from stages.shapes_world.training_loop import run_training, step_rng

pytestmark = pytest.mark.slow


def train_line(folder: Path, steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)

    def update(step: int) -> dict[str, float]:
        _, generator = step_rng(0, step)
        x = torch.randn(8, 2, generator=generator)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    run_training(
        "line",
        folder,
        {"net": net, "optimizer": optimizer},
        steps,
        update,
        log_every=5,
        save_every_s=0,
        report=lambda text: None,
    )
    return net.weight.detach().clone()


def test_a_continued_training_equals_an_undisturbed_one(tmp_path):
    straight = train_line(tmp_path / "a", 30)
    train_line(tmp_path / "b", 15)
    assert torch.equal(train_line(tmp_path / "b", 30), straight)
    logs = [(tmp_path / n / "line.jsonl").read_text().splitlines() for n in "ab"]
    assert [line.split('"loss"')[1] for line in logs[0]] == [
        line.split('"loss"')[1] for line in logs[1]
    ]
    assert load_state(tmp_path / "b" / "line.safetensors")["step"] == 30


def test_step_rng_depends_on_seed_and_step_alone():
    first, second = step_rng(1, 2), step_rng(1, 2)
    assert first[0].random() == second[0].random()
    assert torch.equal(torch.randn(3, generator=first[1]), torch.randn(3, generator=second[1]))
    assert step_rng(1, 3)[0].random() != random.Random("1/2").random()


def test_the_recipe_makes_a_whole_pipeline(tmp_path):
    """Two steps in ten thousand: the folder is complete and goes through the same code as a hub
    SD3.
    """
    from schemas.config import TeacherConfig
    from stages.shapes_world.train import train_all
    from stages.teachers import open_teacher

    train_all(tmp_path / "work", tmp_path / "out", share=0.0002, report=lambda text: None)
    teacher = open_teacher(
        TeacherConfig(family="shapes", model=str(tmp_path / "out"), use_t5=False)
    )
    assert (teacher.unit, teacher.latent_channels, teacher.max_tokens) == (8, 16, 14)
    assert (tmp_path / "out" / "judge.safetensors").is_file()
    assert len((tmp_path / "out" / "REVISION").read_text().strip()) == 12
    latents = torch.zeros(1, 16, 16, 24)
    velocity = teacher.backbone(dtype=torch.float32).velocity(
        latents, torch.ones(1), teacher.encode_prompts(["a red circle"])
    )
    assert velocity.shape == latents.shape and velocity.isfinite().all()
