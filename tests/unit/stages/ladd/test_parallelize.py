"""Training on two ranks: the same losses as on one, whole or sharded, and checkpoints that move
between them; compiled blocks.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.config import (
    DistillConfig,
)
from stages.ladd import precision
from stages.ladd.backbone import Conditioning
from stages.ladd.batch_plan import slots_of
from stages.ladd.checkpoint import CheckpointError, names_in
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone
from tests.support.trainers import plain_trainer
from tests.support.training import on_ranks

pytestmark = pytest.mark.slow
STEPS, FEW = 12, 4
"""Of the first updates, two are the heads' head start."""
CPU = torch.device("cpu")
WAYS = {
    "replicated": {"shard_over": 1},
    "student sharded": {"shard_over": 2},
    "both sharded": {"shard_over": 2, "shard_teacher": True},
}
LOOKS = (1, 4, STEPS // 2 - 1, STEPS - 5)
"""Updates behind which the average is looked at: in the heads' head start, and before a save."""
UNEVEN = {"global_batch": 3, "micro_batch": 1}
"""As when an elastic training has lost a worker: two samples for one rank, one for the other."""
LOW = {"bfloat16": True, "checkpoint_blocks": True}
"""The last job of a process: from then on it computes in bfloat16."""


def batch_of(step: int) -> tuple[torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(4, 4, 8, 12, generator=generator)
    tokens = torch.randn(4, 5, 24, generator=generator)
    return latents, Conditioning(tokens, torch.randn(4, 24, generator=generator), null_tokens=7)


@torch.no_grad()
def look_at_average(trainer: LaddTrainer, latents: torch.Tensor, text: Conditioning) -> None:
    """What a sample grid does: a forward of the averaged weights, no backward. It must leave the
    weights that the optimizer trains as they were.
    """
    trained = trainer.student_optimizer.param_groups[0]["params"]
    before = [getattr(p, "_local_tensor", p).clone() for p in trained]
    trainer.average.swap_with(trainer.student)
    with trainer.autocast():
        trainer.student.velocity(latents, torch.ones(len(latents)), text)
    trainer.average.swap_with(trainer.student)
    for kept, parameter in zip(before, trained, strict=True):
        assert torch.equal(kept, getattr(parameter, "_local_tensor", parameter))


def train(
    rank: int, world: int, way: dict[str, Any], steps: range, load: str, save: str
) -> list[dict[str, float]]:
    """Metrics of the updates `steps`, from the checkpoint `load` if named, leaving `save`."""
    from tests.support.tiny_sd3 import tiny_transformer

    torch.manual_seed(0)
    is_low = way.get("bfloat16", False)
    low = torch.bfloat16 if is_low else torch.float32
    if is_low:
        precision.cpu_has_bfloat16 = lambda: True  # in a process of its own
    student, teacher = (
        SD3Backbone(tiny_transformer(), checkpoint_blocks=way.get("checkpoint_blocks", False))
        for _ in range(2)
    )
    teacher.to(low).requires_grad_(False)
    config = DistillConfig(
        steps=STEPS,
        global_batch=way.get("global_batch", 4),
        micro_batch=way.get("micro_batch"),
        workers=way.get("shard_over", 1),
        precision="bfloat16" if is_low else "float32",
        # Adam's first steps turn differences of rounding into steps of the whole rate.
        learning_rate=2e-4,
        discriminator={"learning_rate": 2e-4, "head_start_steps": 2, "channels": 8},
        student_time={"warmup_steps": 5, "rollout": 0.5},
        objective={"mismatched_share": 0.3},
        shard_over=way.get("shard_over", 1),
    )
    spread(student, CPU, config.shard_over, low)
    if way.get("shard_teacher"):
        spread(teacher, CPU, config.shard_over, low)
    trainer = LaddTrainer(student, teacher, 24, config, CPU)
    if load:
        trainer.load(Path(load))
    assert trainer.step == steps.start
    mine = slots_of(config.global_batch, rank, world)
    rows = [slot % config.global_batch for slot in range(mine.start, mine.stop + 1)]
    metrics = []
    for step in steps:
        latents, conditioning = batch_of(step)
        metrics.append(trainer.update(latents[rows], conditioning.select(rows)))
        if step in LOOKS:
            look_at_average(trainer, latents, conditioning)
    if save:
        trainer.save(Path(save))
    return metrics


def _rank(rank: int, jobs: dict[str, tuple], out: str) -> None:
    traces = {name: train(rank, 2, *job) for name, job in jobs.items()}
    if rank == 0:
        Path(out).write_text(json.dumps(traces))


HALF = STEPS // 2


@pytest.fixture(scope="module")
def on_one() -> list[dict[str, float]]:
    return train(0, 1, {}, range(STEPS), "", "")


@pytest.fixture(scope="module")
def on_two(tmp_path_factory) -> tuple[Path, dict[str, list[dict[str, float]]]]:
    """Folder of the checkpoints at half way, and the traces of all jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    train(0, 1, {}, range(HALF), "", str(folder / "one"))
    jobs = {}
    for name, way in WAYS.items():
        saved = str(folder / name)
        jobs[f"{name}, first half"] = (way, range(HALF), "", saved)
        jobs[f"{name}, second half"] = (way, range(HALF, STEPS), saved, "")
    jobs["uneven"] = (UNEVEN, range(HALF), "", "")
    jobs["from one"] = (WAYS["both sharded"], range(HALF, STEPS), str(folder / "one"), "")
    jobs["low"] = (LOW | WAYS["both sharded"], range(FEW), "", "")
    out = folder / "traces.json"
    on_ranks(2, _rank, jobs, str(out))
    return folder, json.loads(out.read_text())


def assert_same_trace(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected)
    for step, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        assert row == pytest.approx(wanted, rel=2e-3, abs=2e-4), f"update {step}"


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_repeat_the_losses_of_one(name, on_one, on_two):
    assert len({row["student_loss"] for row in on_one}) == STEPS
    traces = on_two[1]
    assert_same_trace(traces[f"{name}, first half"], on_one[:HALF])
    assert_same_trace(traces[f"{name}, second half"], on_one[HALF:])


def test_two_ranks_with_uneven_shares_repeat_the_losses_of_one(on_two):
    alone = train(0, 1, {"global_batch": 3}, range(HALF), "", "")
    assert_same_trace(on_two[1]["uneven"], alone)


def test_two_sharded_ranks_in_bfloat16_do_as_one(on_two, monkeypatch):
    """As the presets for eight GPUs train: blocks recomputed, weights gathered in bfloat16. One
    rank keeps norms and biases in float32, so losses agree to bfloat16's digits.
    """
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    alone = train(0, 1, LOW, range(FEW), "", "")
    for found, wanted in zip(on_two[1]["low"], alone, strict=True):
        losses = {name for name in wanted if name.endswith(("_loss", "_logit"))}
        assert len(losses) == 4
        for name in losses:
            assert found[name] == pytest.approx(wanted[name], rel=0.02, abs=0.01), name


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_behind_a_look_at_the_average_holds_all_state(name, on_two):
    folder, _ = on_two
    assert names_in(folder / name) == names_in(folder / "one")


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_of_two_ranks_goes_on_on_one(name, on_one, on_two):
    found = train(0, 1, {}, range(HALF, STEPS), str(on_two[0] / name), "")
    assert_same_trace(found, on_one[HALF:])


def test_a_checkpoint_of_one_rank_goes_on_on_two(on_one, on_two):
    assert_same_trace(on_two[1]["from one"], on_one[HALF:])


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(0, 1, {}, range(3), "", str(tmp_path))
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        train(0, 1, {}, range(3, 4), str(tmp_path), "")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(0, 1, {}, range(3, 4), str(tmp_path), "")


def test_compiled_blocks_train_as_the_others_do(tiny_backbones, tiny_batch, monkeypatch):
    """Traced and differentiated ahead of time; the C++ that inductor makes is torch's to test."""
    compiling = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda block: compiling(block, backend="aot_eager")
    )
    plain = plain_trainer(copy.deepcopy(tiny_backbones))
    for backbone in tiny_backbones:
        compile_blocks(backbone)
    compiled = plain_trainer(tiny_backbones)
    latents, conditioning = tiny_batch
    # Bug: leave torch's limit of eight compilations; with the second bucket most blocks run plain.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for bucket in (latents, latents, latents.transpose(2, 3).contiguous()):
            expected = plain.update(bucket, conditioning)
            made = compiled.update(bucket, conditioning)
            assert made == pytest.approx(expected, rel=2e-3, abs=1e-4)
