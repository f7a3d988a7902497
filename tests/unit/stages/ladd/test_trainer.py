"""The trainer: exact resume, accumulation, skipped updates, options."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from schemas.config import (
    DiscriminatorConfig,
    DistillConfig,
    ObjectiveConfig,
)
from stages.ladd.trainer import LaddTrainer
from tests.support.trainers import plain_trainer
from tests.support.training import on_ranks

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def make_trainer(backbones, **changes) -> LaddTrainer:
    options = {
        "global_batch": 4,
        "precision": "float32",
        "learning_rate": 1e-3,
        "steps": 8,
        "ema_decay": 0.9,
    }
    options |= {
        "student_time": {"warmup_steps": 1},
        "discriminator": {"channels": 8, "learning_rate": 1e-3, "head_start_steps": 1},
    }
    return LaddTrainer(*backbones, 24, DistillConfig.model_validate(options | changes), CPU)


def test_a_resumed_trainer_repeats_the_undisturbed_one(tiny_backbones, tiny_batch, tmp_path):
    import copy

    spare = copy.deepcopy(tiny_backbones)
    straight = make_trainer(tiny_backbones)
    first = [straight.update(*tiny_batch) for _ in range(2)]
    straight.save(tmp_path)
    expected = [straight.update(*tiny_batch) for _ in range(3)]
    resumed = make_trainer(spare)
    resumed.load(tmp_path)
    assert resumed.step == 2
    assert [resumed.update(*tiny_batch) for _ in range(3)] == expected
    assert "student_grad_norm" not in first[0] and "student_grad_norm" in first[1]


def test_accumulation_does_not_change_the_update(tiny_backbones, tiny_batch):
    import copy

    spare = copy.deepcopy(tiny_backbones)
    whole, parts = make_trainer(tiny_backbones), make_trainer(spare, micro_batch=1)
    for _ in range(3):
        expected, found = whole.update(*tiny_batch), parts.update(*tiny_batch)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def state_of(trainer) -> dict[str, torch.Tensor]:
    """All that the next update depends on, but for its number."""
    return {name: x.clone() for name, x in trainer._tensors().items() if name != "step"}


@pytest.mark.parametrize("first", [0, 2])
def test_an_update_that_is_not_finite_is_skipped_and_leaves_no_trace(
    tiny_backbones, tiny_batch, first
):
    """Bug at the first: keep the standardization that was measured on it."""
    trainer = make_trainer(tiny_backbones)
    for _ in range(first):
        trainer.update(*tiny_batch)
    before = state_of(trainer)
    latents, conditioning = tiny_batch
    metrics = trainer.update(latents * float("nan"), conditioning)
    assert metrics["skipped"] == 1 and math.isnan(metrics["discriminator_loss"])
    assert trainer.step == first + 1
    after = state_of(trainer)
    if first:
        assert all(torch.equal(before[name], after[name]) for name in before | after)
    gradients = [p.grad for net in (trainer.student, trainer.heads) for p in net.parameters()]
    assert all(gradient is None for gradient in gradients)
    for _ in range(3):
        metrics = trainer.update(*tiny_batch)
    assert "skipped" not in metrics and all(map(math.isfinite, metrics.values()))
    assert all(x.isfinite().all() for x in state_of(trainer).values())


def _one_rank_fails(rank: int, backbones, batch) -> None:
    trainer = make_trainer(backbones, workers=2)
    latents, conditioning = (part[2 * rank : 2 * rank + 2] for part in (batch[0], range(4)))
    text = batch[1].select(list(conditioning))
    trainer.update(latents, text)
    before = state_of(trainer)
    metrics = trainer.update(latents * (float("nan") if rank else 1.0), text)
    assert metrics["skipped"] == 1
    assert all(torch.equal(before[name], x) for name, x in state_of(trainer).items())


def test_an_update_that_fails_on_one_rank_is_skipped_on_all(tiny_backbones, tiny_batch):
    on_ranks(2, _one_rank_fails, tiny_backbones, tiny_batch)


def test_rates_are_scaled_as_the_watch_says(tiny_backbones, tiny_batch):
    trainer = make_trainer(tiny_backbones)
    trainer.update(*tiny_batch)
    trainer.update(*tiny_batch, {"student": 0.5, "heads": 0.25})
    assert trainer.rates == pytest.approx({"student_rate": 5e-4, "heads_rate": 2.5e-4})


def test_the_students_rate_warms_up_and_falls_and_the_heads_keep_theirs(tiny_backbones, tiny_batch):
    trainer = make_trainer(tiny_backbones, warmup_updates=4, decay_share=0.5)
    rates: dict[str, list[float]] = {"student": [], "heads": []}
    for _ in range(trainer.config.total_steps):
        trainer.update(*tiny_batch)
        rates["student"].append(trainer.student_optimizer.param_groups[0]["lr"] / 1e-3)
        rates["heads"].append(trainer.heads_optimizer.param_groups[0]["lr"] / 1e-3)
    assert rates["student"] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    assert rates["heads"] == [1] * 9


def test_the_frozen_teacher_does_not_change(tiny_backbones, tiny_batch):
    teacher = tiny_backbones[1]
    before = [p.clone() for p in teacher.parameters()]
    trainer = make_trainer(tiny_backbones)
    for _ in range(3):
        trainer.update(*tiny_batch)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_a_checkpoint_of_the_head_start_loads_after_one_that_could_not_be_read(
    tiny_backbones, tiny_batch, tmp_path
):
    """Bug: keep the student's moments of the later one, which the earlier one lacks."""
    heads = DiscriminatorConfig(head_start_steps=1)
    trainer = plain_trainer(tiny_backbones, discriminator=heads)
    trainer.update(*tiny_batch)
    trainer.save(tmp_path)
    trainer.update(*tiny_batch)
    assert trainer.student_optimizer.state
    trainer.load(tmp_path)
    assert trainer.step == 1 and not trainer.student_optimizer.state


def test_mismatched_prompts_are_those_of_the_next_samples(tiny_backbones, tiny_batch):
    around = [0, 1, 2, 3, 0]
    latents, conditioning = tiny_batch[0][around], tiny_batch[1].select(around)
    found = {
        (share, micro): plain_trainer(
            copy.deepcopy(tiny_backbones),
            objective=ObjectiveConfig(mismatched_share=share),
            micro_batch=micro,
        ).update(latents[: 5 if share else 4], conditioning)
        for share in (0.0, 0.3)
        for micro in (None, 1)
    }
    assert found[0.3, 1] == pytest.approx(found[0.3, None], rel=1e-4)
    assert found[0.3, None]["fake_logit"] == pytest.approx(found[0.0, None]["fake_logit"])
    assert abs(found[0.3, 1]["discriminator_loss"] - found[0.0, 1]["discriminator_loss"]) > 1e-4


def test_heads_may_learn_several_times_for_each_update_of_the_student(tiny_backbones, tiny_batch):
    trainer = plain_trainer(
        tiny_backbones,
        steps=2,
        discriminator=DiscriminatorConfig(head_start_steps=1, updates_per_student=3),
    )
    assert trainer.config.total_steps == 7
    moved = []
    for _ in range(trainer.config.total_steps):
        before = [p.clone() for p in trainer.student.parameters()]
        trainer.update(*tiny_batch)
        after = trainer.student.parameters()
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
    assert moved == [False, True, False, False, True, False, False]


@pytest.mark.parametrize(
    "changes", [{"taps": "last"}, {"convolutions": "1d"}, {"conditioned": False}]
)
def test_a_student_learns_from_poorer_heads(tiny_backbones, tiny_batch, changes):
    discriminator = DiscriminatorConfig(channels=8, **changes)
    trainer = plain_trainer(tiny_backbones, discriminator=discriminator)
    before = [p.detach().clone() for p in trainer.student.parameters()]
    trainer.update(*tiny_batch)
    after = trainer.student.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
