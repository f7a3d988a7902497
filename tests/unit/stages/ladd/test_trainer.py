"""The trainer: exact resume, accumulation, divergence, options, health."""

from __future__ import annotations

import copy

import pytest
import torch

from schemas.config import (
    DiscriminatorConfig,
    DistillConfig,
    ObjectiveConfig,
)
from stages.ladd.trainer import (
    HealthWatch,
    LaddTrainer,
    TrainingDiverged,
    diversity_warnings,
)
from tests.support.trainers import plain_trainer

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


def test_divergence_stops_training_and_leaves_the_weights(tiny_backbones, tiny_batch):
    trainer = make_trainer(tiny_backbones)
    trainer.update(*tiny_batch)
    before = [p.clone() for p in trainer.student.parameters()]
    latents, conditioning = tiny_batch
    with pytest.raises(TrainingDiverged, match="not a finite number"):
        trainer.update(latents * float("nan"), conditioning)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.student.parameters(), strict=True))
    assert trainer.step == 1


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


def healthy(**changes):
    logits = {"real_logit": 0.4, "fake_logit": -0.2}
    return {"student_loss": 0.2, "student_grad_norm": 1.0} | logits | changes


def test_health_watch_warns_once_of_collapse_and_of_drift():
    watch = HealthWatch()
    assert not any(watch.observe(healthy()) for _ in range(300))
    sure = healthy(real_logit=1.2, fake_logit=-1.4)
    warnings = [w for i in range(300) for w in watch.observe(sure)]
    assert len(warnings) == 1 and "collapse" in warnings[0]
    watch = HealthWatch()
    warnings = [w for i in range(400) for w in watch.observe(healthy(student_loss=i / 100))]
    assert len(warnings) == 1 and "losing" in warnings[0]
    watch = HealthWatch()
    for i in range(400):
        alone = healthy(real_logit=1.5, fake_logit=-1.5, student_loss=i / 100)
        del alone["student_grad_norm"]  # the heads' head start
        assert watch.observe(alone) == []


def test_diversity_below_half_of_the_teachers_is_told():
    assert diversity_warnings(1.0, 1.2) == []
    assert diversity_warnings(0.3, 1.0)[0].startswith("pictures of one prompt differ 30%")


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
