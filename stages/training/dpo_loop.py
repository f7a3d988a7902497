"""What each worker of `dpo` runs, top to bottom: build, resume, update, look, save.

A last look after `dpo.steps` updates belongs to this artifact alone: a longer tuning would not take
it there. So it comes after the trunk's last checkpoint.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext
from pipeline.base.training import TrainingRun
from schemas.bucket import Bucket
from schemas.config import DpoConfig
from schemas.errors import StageFailed
from stages.data.pair_batches import PairData
from stages.ladd.backbone import Backbone, WithoutAdapters
from stages.ladd.batch_plan import BatchPlan, round_size, slots_of
from stages.ladd.dpo_trainer import PASSES, DpoTrainer, Pairs, TuningWatch
from stages.ladd.grid import student_sigmas
from stages.ladd.health import TrainingDiverged
from stages.ladd.precision import computed_dtype
from stages.pictures.student import student_of
from stages.teachers import open_teacher
from stages.teachers.devices import worker_device
from stages.teachers.protocol import Teacher
from stages.training.speed import SpeedMeter
from stages.training.trace import LORA, TrainingTrace, fill_checkpoint, resume

HELD_OUT_PAIRS = 256
"""The most held-out pairs that a look judges, each with `HELD_OUT_DRAWS` draws of noise."""
HELD_OUT_DRAWS = 4


def train(run: TrainingRun) -> None:
    """The loop of one worker."""
    context, dpo = run.context, run.context.config.dpo
    teacher = open_teacher(context.config.teacher)
    teacher.place(worker_device(run.cpus, run.gpus))
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("pairs")) as scratch:
        data = PairData(context.inputs["pairs"], Path(scratch), teacher.encode_prompts)
        plan = BatchPlan(data.sizes["train"], dpo.global_batch, dpo.seed)
        net, levels = _tuned_net(teacher, context)
        if levels is None and dpo.shift is None:
            dpo = dpo.model_copy(update={"shift": teacher.shift})
        adapters = teacher.add_adapters(net, dpo.lora, field="dpo.lora", seed=dpo.seed)
        reference = WithoutAdapters(net, adapters.off)
        trainer = DpoTrainer(net.train(), reference, dpo, teacher.device, levels)
        speed = SpeedMeter(teacher.device, run.world)
        trace = TrainingTrace(
            run,
            resume(run, trainer),
            total=dpo.steps,
            log_every=dpo.log_every,
            watch=TuningWatch(),
            max_skipped=dpo.max_skipped,
            signals=lambda: speed.take() | trainer.rates,
        )

        def look() -> None:
            held_out = held_out_batches(data, dpo, run.rank, run.world)
            trace.add_look(trainer.step, _looked(trainer, held_out))

        def fill(folder: Path) -> None:
            fill_checkpoint(folder, trainer, trace, run.rank)

        def fill_last(folder: Path) -> None:
            fill(folder)
            if run.rank == 0:
                trainer.take_best()
                adapters.save(folder / LORA)

        with closing(trace):
            for bucket, batch in speed.fed(_batches(data, plan, trainer, run)):
                metrics = trainer.update(*batch)
                forward = teacher.forward_flops(Bucket.parse(bucket), batch[2].text_tokens)
                speed.add(dpo.global_batch, dpo.global_batch * PASSES * forward)
                trace.add(trainer.step, {"bucket": bucket, **metrics})
                if data.sizes["held_out"] and trainer.step % dpo.watch_every == 0:
                    look()
                if trainer.done or trainer.step % dpo.checkpoint_every == 0:
                    run.save(metrics, fill, trainer.step)
            if data.sizes["held_out"] and "held_out_loss" not in json.loads(trace.lines[-1]):
                look()
            run.save({}, fill_last, trainer.step, in_tail=True)
            if trainer.stopped_early:
                trace.warn(
                    [
                        f"stopped after update {trainer.step}: the held-out loss has not fallen "
                        f"since update {trainer.best_step}, whose adapters are kept"
                    ]
                )


def _looked(trainer: DpoTrainer, held_out: Iterator[tuple[range, Pairs]]) -> dict[str, float]:
    """What a look finds. Raises StageFailed for errors that are not finite."""
    try:
        return trainer.look(held_out)
    except TrainingDiverged as error:
        raise StageFailed(
            f"dpo: {error}; the last good checkpoint is kept, but training from it would diverge "
            "again. Lower dpo.learning_rate: that starts a new training run"
        ) from error


def _batches(
    data: PairData, plan: BatchPlan, trainer: DpoTrainer, run: TrainingRun
) -> Iterator[tuple[str, Pairs]]:
    """Yield the bucket and this worker's pairs of every update until the training is done."""
    mine = slots_of(trainer.config.global_batch, run.rank, run.world)
    while not trainer.done:
        bucket, rows = plan.batch(trainer.step)
        yield bucket, data.batch("train", bucket, rows[mine.start : mine.stop])


def _tuned_net(teacher: Teacher, context: StageContext) -> tuple[Backbone, list[float] | None]:
    """Return the net to tune, in the precision of the forward passes, and the noise levels to tune
    it on: None for the teacher's.
    """
    config = context.config
    dpo, dtype = config.dpo, computed_dtype(getattr(torch, config.dpo.precision), teacher.device)
    if config.pairs.model == "teacher":
        return teacher.backbone(dtype=dtype, checkpoint_blocks=dpo.checkpoint_blocks), None
    # On a GPU it is never in float32: cast first.
    net, grid = student_of(context.inputs["distill"], torch.device("cpu"), bfloat16=False)
    net.checkpoint_blocks = dpo.checkpoint_blocks
    return net.to(dtype).to(teacher.device), student_sigmas(grid, config.pairs.student_steps)


def held_out_batches(
    data: PairData, config: DpoConfig, rank: int, world: int
) -> Iterator[tuple[range, Pairs]]:
    """Yield this rank's part of the held-out pairs that a look judges, in batches of one bucket. A
    pair has one slot for each of its draws of noise.
    """
    sizes = data.sizes["held_out"]
    stride = math.ceil(sum(sizes.values()) / HELD_OUT_PAIRS)
    size = round_size(config)
    slot = number = 0
    for bucket, count in sizes.items():
        rows = [*range(0, count, stride)] * HELD_OUT_DRAWS
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            if number % world == rank:
                yield range(slot, slot + len(part)), data.batch("held_out", bucket, part)
            slot, number = slot + len(part), number + 1
