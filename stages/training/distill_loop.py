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
from stages.ladd.ema import ExponentialAverage
from stages.ladd.health import HealthWatch, Sign
from stages.ladd.low_bit import quantize_blocks
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.passes import passes
from stages.ladd.precision import computed_dtype
from stages.ladd.trainer import LaddTrainer
from stages.pictures.sample_grids import SampleGrids
from stages.teachers import open_teacher
from stages.teachers.devices import worker_device
from stages.teachers.protocol import Teacher
from stages.training.choice import best_update, marked
from stages.training.speed import SpeedMeter
from stages.training.start import student_start
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
        with student_start(context, teacher) as start:
            student, frozen = _nets(teacher, start, config)
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
        held_out = _HeldOut(run, trace, teacher, frozen, student, trainer.average)
        wanted = _wanted(plan, run, trainer.step, distill)
        with closing(trace), closing(data.ahead(wanted)) as batches:
            for bucket, latents_BCHW, conditioning in speed.fed(batches):
                metrics = trainer.update(latents_BCHW, conditioning, watch.rate_scale)
                cost = passes(distill, train_student="student_grad_norm" in metrics)
                speed.add(distill.global_batch, distill.global_batch * cost * forward[bucket])
                signs = trace.add(trainer.step, {"bucket": bucket, **metrics})
                signs += held_out.after(trainer.step)
                certain = [sign for sign in signs if sign.is_certain]
                if certain and distill.on_collapse == "stop":
                    raise _stopped(trainer.step, certain[0])
                due = trainer.step in (distill.trunk_steps, distill.total_steps)
                if due or trainer.step % distill.checkpoint_every == 0:
                    run.save(
                        metrics,
                        lambda folder: fill_checkpoint(folder, trainer, trace, run.rank),
                        trainer.step,
                        in_tail=trainer.step > distill.trunk_steps,
                        best=best_update(trace.lines, distill),
                    )
            held_out.at_end(trainer.step)


class _HeldOut:
    """What held-out prompts show of the student: sample grids and looks."""

    def __init__(
        self,
        run: TrainingRun,
        trace: TrainingTrace,
        teacher: Teacher,
        frozen: Backbone,
        student: Backbone,
        average: ExponentialAverage,
    ) -> None:
        self._context, self._rank, self._trace = run.context, run.rank, trace
        self._distill = distill = run.context.config.distill
        self._grids = SampleGrids(run.context, teacher, frozen, student, average)
        self._look = None
        if distill.look is not None:
            self._look = HeldOutLook(run.context, distill.look, teacher, frozen, student, average)

    def after(self, step: int) -> list[Sign]:
        """Draw and look if it is time after update `step`; returns what is bad."""
        context, distill, signs = self._context, self._distill, []
        if distill.sample_prompts and step % distill.sample_every == 0:
            in_tail = step > distill.trunk_steps
            signs = self._draw(step, context.folder if in_tail else context.training_folder)
        if self._look is not None and step % self._look.config.every == 0:
            figures = marked(self._look.config) | self._look.take()
            signs = [*signs, *self._trace.add_look(step, figures)]
        return signs

    def at_end(self, step: int) -> None:
        """Draw the artifact's last grid, unless there is one: a longer training draws none here."""
        if self._distill.sample_prompts and step % self._distill.sample_every:
            self._draw(step, self._context.folder)

    def _draw(self, step: int, folder: str) -> list[Sign]:
        signs = self._grids.put(step, folder=None if self._rank else folder)
        self._trace.warn([sign.text for sign in signs])
        return signs


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


def _nets(teacher: Teacher, start: Teacher, config: PipelineConfig) -> tuple[Backbone, Backbone]:
    """Student and frozen teacher. With `lora` they share one copy of the weights, in the teacher's
    precision, with float32 adapters that are off for the teacher; unless the student starts from
    other weights.
    """
    distill = config.distill
    gathered = computed_dtype(getattr(torch, distill.precision), teacher.device)
    frozen_dtype = computed_dtype(getattr(torch, config.frozen_dtype), teacher.device)
    if distill.lora is not None:
        student = _backbone(start, config, gathered, dtype=frozen_dtype, lora=distill.lora)
        if start is teacher:
            return student, WithoutAdapters(student, teacher.adapters(student).off)
    else:
        student = _backbone(start, config, gathered, dtype=torch.float32)
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
