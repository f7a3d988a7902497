"""Adapters on one copy of the weights: trained as beside a teacher with a copy of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.config import DistillConfig, LoraConfig
from stages.ladd.backbone import Backbone, WithoutAdapters
from stages.ladd.batch_plan import slots_of
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import add_adapters
from tests.support.tiny_sd3 import tiny_transformer
from tests.support.training import on_ranks

CPU = torch.device("cpu")
STEPS = 3


def adapted_net(layers: int = 3) -> tuple[SD3Backbone, WithoutAdapters]:
    """A student whose adapters already have an effect, and its teacher."""
    net = SD3Backbone(tiny_transformer(dual=(0,), layers=layers))
    adapters = add_adapters(net.transformer, LoraConfig(rank=2))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net, WithoutAdapters(net, adapters.off)


def make_trainer(student: Backbone, teacher: Backbone, **changes: Any) -> LaddTrainer:
    options = {
        "steps": STEPS,
        "global_batch": 4,
        "precision": "float32",
        "learning_rate": 1e-3,
        "student_time": {"rollout": 0.5},
        "objective": {"mismatched_share": 0.3},
        "discriminator": {"channels": 8, "head_start_steps": 1},
    }
    config = DistillConfig.model_validate(options | changes)
    return LaddTrainer(student.train(), teacher, 24, config, CPU)


def updates(trainer: LaddTrainer, tiny_batch: tuple, rank: int = 0, world: int = 1) -> list[dict]:
    latents, conditioning = tiny_batch
    mine = slots_of(4, rank, world)
    rows = [slot % 4 for slot in range(mine.start, mine.stop + 1)]
    return [trainer.update(latents[rows], conditioning.select(rows)) for _ in range(STEPS)]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_copy_trains_as_two_do(checkpointed, tiny_batch):
    """Bug: recompute the teacher's blocks, which backward does outside of `off`, with adapters."""
    student, shared = adapted_net()
    twin, _ = adapted_net()
    own = SD3Backbone(tiny_transformer(dual=(0,)))
    for net in (student, twin, own):
        net.checkpoint_blocks = checkpointed
    one, two = make_trainer(student, shared), make_trainer(twin, own)
    assert updates(one, tiny_batch) == updates(two, tiny_batch)
    for net, other in ((one.student, two.student), (one.average, two.average)):
        for found, expected in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(found, expected)


def test_the_average_is_of_the_adapters_alone_and_the_teacher_does_not_see_it(tiny_batch):
    student, shared = adapted_net()
    trainer = make_trainer(student, shared)
    assert len(list(trainer.average.parameters())) == sum(
        "lora_" in name for name, _ in student.named_parameters()
    )
    latents, text = tiny_batch
    with torch.no_grad():
        before = shared.velocity(latents, torch.ones(4), text)
    updates(trainer, tiny_batch)
    with torch.no_grad():
        trainer.average.swap_with(student)
        assert torch.equal(shared.velocity(latents, torch.ones(4), text), before)
        assert not torch.equal(student.velocity(latents, torch.ones(4), text), before)


def test_a_net_computes_the_same_in_training_and_in_evaluation(tiny_batch):
    net, _ = adapted_net()
    latents, text = tiny_batch
    with torch.no_grad():
        modes = [m.velocity(latents, torch.ones(4), text) for m in (net.train(), net.eval())]
    assert torch.equal(*modes)


def test_a_shared_base_resumes_exactly(tiny_batch, tmp_path):
    straight = make_trainer(*adapted_net())
    updates(straight, tiny_batch)
    straight.save(tmp_path)
    expected = updates(straight, tiny_batch)
    resumed = make_trainer(*adapted_net())
    resumed.load(tmp_path)
    assert updates(resumed, tiny_batch) == expected


@pytest.mark.slow
def test_compiled_blocks_know_whether_the_adapters_are_on(tiny_batch, monkeypatch):
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda block: compiling(block, backend="aot_eager")
    )
    (plain, plain_shared), (student, shared) = adapted_net(layers=2), adapted_net(layers=2)
    compile_blocks(student)
    latents, text = tiny_batch
    with torch.no_grad():
        for net, expected in ((student, plain), (shared, plain_shared), (student, plain)):
            torch.testing.assert_close(
                net.velocity(latents, torch.ones(4), text),
                expected.velocity(latents, torch.ones(4), text),
                atol=1e-4,
                rtol=1e-3,
            )


def _rank(rank: int, tiny_batch: tuple, shard_over: int, checkpointed: bool, out: Path) -> None:
    student, shared = adapted_net()
    student.checkpoint_blocks = checkpointed
    spread(student, CPU, shard_over, torch.float32)
    trainer = make_trainer(student, shared, workers=2, shard_over=shard_over)
    metrics = updates(trainer, tiny_batch, rank, 2)
    if rank == 0:
        out.write_text(json.dumps(metrics))


@pytest.mark.slow
@pytest.mark.parametrize(("shard_over", "checkpointed"), [(1, False), (2, True)])
def test_two_ranks_share_one_base_as_one_rank_does(shard_over, checkpointed, tiny_batch, tmp_path):
    out = tmp_path / "metrics.json"
    on_ranks(2, _rank, tiny_batch, shard_over, checkpointed, out)
    expected = updates(make_trainer(*adapted_net()), tiny_batch)
    for row, wanted in zip(json.loads(out.read_text()), expected, strict=True):
        assert row == pytest.approx(wanted, rel=2e-3, abs=2e-4)
