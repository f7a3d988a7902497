"""What each worker of `distill` runs, top to bottom: build, resume, update, watch, save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch

from pipeline.base.training import TrainingRun
from schemas.bucket import Bucket
from schemas.config import DistillConfig, PipelineConfig
from schemas.errors import StageFailed
from stages.data.latent_batches import LatentData
from stages.judging.look import HeldOutLook
from stages.ladd.backbone import Backbone, WithoutAdapters
from stages.ladd.batch_plan import BatchPlan, slots_of
from stages.ladd.health import HealthWatch, Sign
from stages.ladd.low_bit import quantize_blocks
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.precision import computed_dtype
from stages.ladd.trainer import LaddTrainer
from stages.ladd.update import passes
from stages.pictures.sample_grids import SampleGrids
from stages.teachers import open_teacher
from stages.teachers.devices import worker_device
from stages.teachers.protocol import Teacher
from stages.training.speed import SpeedMeter
from stages.training.trace import TrainingTrace, fill_checkpoint, resume


def train(run: TrainingRun) -> None:
    """The loop of one worker."""
    context, config = run.context, run.context.config
    teacher = open_teacher(config.teacher)
    teacher.place(worker_device(run.cpus, run.gpus))
    distill = _on_teachers_scale(config.distill, teacher)
    cache = int(distill.cache_gb * 1e9)
    latents = context.inputs["encode"]
    with closing(LatentData(latents, teacher.encode_prompts, cache_bytes=cache)) as data:
        plan = BatchPlan(data.sizes, distill.global_batch, distill.seed)
        student, frozen = _nets(teacher, config)
        text = data.conditioning([0])
        pooled_width = text.pooled_BP.shape[1]
        trainer = LaddTrainer(student.train(), frozen, pooled_width, distill, teacher.device)
        forward = {
            name: teacher.forward_flops(Bucket.parse(name), text.text_tokens) for name in data.sizes
        }
        watch = HealthWatch(lower_rate=distill.on_collapse == "lower_rate")
        speed = SpeedMeter(teacher.device, run.world)
        trace = TrainingTrace(
            run,
            resume(run, trainer),
            total=distill.total_steps,
            log_every=distill.log_every,
            watch=watch,
            max_skipped=distill.max_skipped,
            signals=lambda: speed.take() | trainer.rates,
        )
        grids = SampleGrids(context, teacher, frozen, student, trainer.average)
        look = (
            HeldOutLook(context, distill.look, teacher, frozen, student, trainer.average)
            if distill.look is not None
            else None
        )
        wanted = _wanted(plan, run, trainer.step, distill)
        with closing(trace), closing(data.ahead(wanted)) as batches:
            for bucket, latents_BCHW, conditioning in speed.fed(batches):
                metrics = trainer.update(latents_BCHW, conditioning, watch.rate_scale)
                cost = passes(distill, train_student="student_grad_norm" in metrics)
                speed.add(distill.global_batch, distill.global_batch * cost * forward[bucket])
                signs = trace.add(trainer.step, {"bucket": bucket, **metrics})
                done = trainer.step == distill.total_steps
                if distill.sample_prompts and (done or trainer.step % distill.sample_every == 0):
                    low = grids.put(trainer.step, keep=run.rank == 0)
                    trace.warn([sign.text for sign in low])
                    signs += low
                if look is not None and trainer.step % look.config.every == 0:
                    trace.add_look(trainer.step, look.take())
                if signs and distill.on_collapse == "stop":
                    raise _stopped(trainer.step, signs[0])
                if done or trainer.step % distill.checkpoint_every == 0:
                    run.save(
                        metrics, lambda folder: fill_checkpoint(folder, trainer, trace, run.rank)
                    )


def _on_teachers_scale(distill: DistillConfig, teacher: Teacher) -> DistillConfig:
    """The configuration with its noise levels as the method takes them: the student's own levels
    for its grid, and numbers for shifts.
    """
    time, renoise = distill.student_time, distill.renoise
    levels = list(teacher.student_grid(time).levels)
    shift = teacher.shift if renoise.shift is None else renoise.shift
    return distill.model_copy(
        update={
            "student_time": time.model_copy(update={"grid": levels, "shift": 1.0}),
            "renoise": renoise.model_copy(update={"shift": shift}),
        }
    )


def _wanted(
    plan: BatchPlan, run: TrainingRun, start: int, distill: DistillConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the bucket and this worker's rows of every update from `start` on."""
    mine = slots_of(distill.global_batch, run.rank, run.world)
    more = 1 if distill.objective.mismatched_share > 0 else 0
    for step in range(start, distill.total_steps):
        yield plan.part(step, mine, more=more)


def _stopped(step: int, sign: Sign) -> StageFailed:
    return StageFailed(
        f"distill: stopped after update {step}, as distill.on_collapse says: {sign.text}; the last "
        "checkpoint is kept, and distill.on_collapse=warn goes on from it"
    )


def _nets(teacher: Teacher, config: PipelineConfig) -> tuple[Backbone, Backbone]:
    """Student and frozen teacher. With `lora` they share one copy of the weights, in the teacher's
    precision, with float32 adapters that are off for the teacher.
    """
    distill = config.distill
    gathered = computed_dtype(getattr(torch, distill.precision), teacher.device)
    frozen_dtype = computed_dtype(getattr(torch, config.frozen_dtype), teacher.device)
    if distill.lora is not None:
        student = _backbone(teacher, config, gathered, dtype=frozen_dtype, lora=distill.lora)
        return student, WithoutAdapters(student, teacher.adapters(student).off)
    student = _backbone(teacher, config, gathered, dtype=torch.float32)
    gathered_teacher = frozen_dtype if distill.shard_teacher else None
    return student, _backbone(teacher, config, gathered_teacher, dtype=frozen_dtype, frozen=True)


def _backbone(
    teacher: Teacher,
    config: PipelineConfig,
    gathered: torch.dtype | None,
    *,
    frozen: bool = False,
    **options: Any,
) -> Backbone:
    """Load a backbone; quantise what is frozen of it and compile its blocks if the configuration
    says so. Unless `gathered` is None, the backbone is spread over the workers and its weights are
    gathered in that dtype; if they are sharded, each worker loads only its shards.
    """
    distill = config.distill

    def prepare(net: Backbone) -> None:
        if frozen:
            net.requires_grad_(False)
        if distill.frozen_weights != "full":
            quantize_blocks(net, distill.frozen_weights)
        if distill.compile_blocks:
            compile_blocks(net)
        if gathered is not None:
            spread(net, teacher.device, distill.shard_over, gathered)

    sharded = prepare if gathered is not None and distill.shard_over > 1 else None
    net = teacher.backbone(checkpoint_blocks=distill.checkpoint_blocks, shard=sharded, **options)
    if sharded is None:
        prepare(net)
    return net
