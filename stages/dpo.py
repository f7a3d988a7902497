"""Stage `dpo`: preference tuning. Trains adapters on teacher or student with the method of
`stages/ladd/dpo_trainer.py`, then puts them on the student at the scale that another score likes
best.

The loop of a worker reads top to bottom: build, resume, update, look, save. What is trained is kept
before the scales are tried, and each scale when it is tried, so a stopped stage goes on from there.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.shards import ShardWriter, finished_shards
from pipeline.stage import StageContext, StageResult
from pipeline.store import Artifact
from pipeline.training import TrainingPlan, TrainingRun, train_on_ray
from schemas.config import DpoConfig, PipelineConfig
from schemas.errors import ConfigError, StageFailed
from schemas.records import ShardStats
from stages.devices import worker_device
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError, round_size, slots_of
from stages.ladd.dpo_trainer import DpoTrainer, Pairs, TuningWatch
from stages.ladd.sampling import student_sigmas
from stages.ladd.trainer import TrainingDiverged
from stages.pair_data import PairData
from stages.pairs import check_score, student_of
from stages.scale_sweep import LORA, local_lora, try_scales
from stages.student import check_steps
from stages.teachers import open_teacher
from stages.teachers.protocol import Teacher
from stages.training_trace import TRACE, TrainingTrace, fill_checkpoint, resume

TUNED = "shards/tuned"
"""Marks that the adapters are trained and lie in the artifact's folder."""
HELD_OUT_PAIRS = 256
"""At most so many held-out pairs are looked at, each with `HELD_OUT_DRAWS` noises."""
HELD_OUT_DRAWS = 4


def check(config: PipelineConfig) -> None:
    """Raises ConfigError when the scale would be chosen by the score that made the pairs, by one
    that nobody knows, or in steps that the student does not take.
    """
    pairs = config.pairs
    check_steps("pairs.student_steps", pairs.student_steps, config.distill.student_time.grid)
    check_score("dpo.chooser", config.dpo.chooser.name)
    if pairs.url is None and config.dpo.chooser.name == pairs.reward.name:
        raise ConfigError(
            f"dpo.chooser is {config.dpo.chooser.name}, which also ranks the pairs "
            "(pairs.reward): what was trained for cannot judge; name another score"
        )


def run(context: StageContext) -> StageResult:
    student = context.inputs["distill"]
    tuned = finished_shards(context.store, context.folder).get(TUNED) or _tune(context)
    sweep = try_scales(context)
    if sweep.gain < 0:
        context.report(
            f"warning: by {sweep.chooser} the student is better without the adapters than with "
            f"them at the best scale, {sweep.scale:g}: see `scales` in the manifest",
            0,
            0,
        )
    files = {
        file: (stats.sizes[file], digest)
        for stats in (tuned, *sweep.stats)
        for file, digest in stats.files.items()
    }
    files |= _save_model(context, sweep.scale) | context.written("tensorboard/")
    return StageResult(
        files=files,
        counts=tuned.counts,
        metrics=tuned.details["metrics"] | {"chooser_gain": sweep.gain},
        details={
            "model": "model",
            "lora": LORA,
            "grid": student.manifest.details["grid"],
            "tuned": context.config.pairs.model,
            "scale": sweep.scale,
            "scales": sweep.rows,
            "chooser": sweep.chooser,
            "short_buckets": tuned.details["short_buckets"],
        },
        device_hours=tuned.details["device_hours"] + sweep.device_hours,
    )


def _tune(context: StageContext) -> ShardStats:
    """Train on Ray Train; adapters and trace then lie in the artifact's folder, and are marked."""
    config = context.config.dpo
    buckets = context.inputs["pairs"].manifest.details["buckets"]
    sizes = {name: splits.get("train", 0) for name, splits in buckets.items()}
    plan = _plan(sizes, context.config)
    settings = {
        "config": context.config,
        "store": context.store,
        "folder": context.folder,
        "pairs": context.inputs["pairs"],
        "student": context.inputs["distill"],
        "report": context.report,
    }
    for name in plan.short_buckets:
        context.report(f"warning: bucket {name} holds fewer pairs than a batch: left out", 0, 0)
    with train_on_ray(context, train, settings, TrainingPlan.of(config)) as (checkpoint, hours):
        writer = ShardWriter(context.store, context.folder, TUNED)
        for path in sorted((checkpoint / LORA).iterdir()):
            writer.file("", path.read_bytes(), name=f"{LORA}/{path.name}")
        trace = (checkpoint / TRACE).read_text()
        writer.file("", trace.encode(), name="metrics.jsonl")
        counts, metrics = _summary([json.loads(line) for line in trace.splitlines()])
        details = {"metrics": metrics, "device_hours": hours, "short_buckets": plan.short_buckets}
        return writer.commit(counts, details)


def _summary(rows: list[dict[str, Any]]) -> tuple[dict[str, int], dict[str, float]]:
    """Counts, and metrics of the look whose adapters are kept; without looks of the last
    updates.
    """
    looks = [row for row in rows if "held_out_loss" in row]
    updates = [row for row in rows if "loss" in row]
    counts = {"updates": len(updates)}
    if looks:
        best = min(looks, key=lambda row: row["held_out_loss"])
        return counts | {"best_update": best["step"]}, {
            name: value for name, value in best.items() if name.startswith("held_out_")
        }
    return counts, {
        name: float(np.mean([row[name] for row in updates[-50:]]))
        for name in ("loss", "margin", "accuracy")
    }


def _plan(sizes: dict[str, int], config: PipelineConfig) -> BatchPlan:
    try:
        return BatchPlan(sizes, config.dpo.global_batch, config.dpo.seed)
    except EmptyPlanError as error:
        held = ", ".join(f"{name}: {size}" for name, size in sorted(sizes.items())) or "none"
        raise ConfigError(
            f"dpo.global_batch is {config.dpo.global_batch}, but no bucket holds that many "
            f"training pairs ({held}); lower it, raise pairs.prompts or lower pairs.margin"
        ) from error


def train(run: TrainingRun, settings: dict[str, Any]) -> None:
    """The loop of one worker."""
    config: PipelineConfig = settings["config"]
    dpo = config.dpo
    device = worker_device(run.cpus, run.gpus)
    teacher = open_teacher(config.teacher)
    teacher.place(device)
    with tempfile.TemporaryDirectory(prefix="ladd-pairs-") as scratch:
        data = PairData(settings["pairs"], Path(scratch), teacher.encode_prompts)
        plan = _plan(data.sizes["train"], config)
        net, levels = _tuned_net(teacher, settings["student"], config, device)
        adapters = teacher.add_adapters(net, dpo.lora, field="dpo.lora", seed=dpo.seed)
        trainer = DpoTrainer(net.train(), adapters.off, dpo, device, levels)
        trace = TrainingTrace(
            run,
            settings,
            resume(run, trainer, settings, "dpo"),
            total=dpo.steps,
            log_every=dpo.log_every,
            watch=TuningWatch().observe,
        )
        mine = slots_of(dpo.global_batch, run.rank, run.world)

        def fill(folder: Path) -> None:
            fill_checkpoint(folder, trainer, trace, run.rank)
            if trainer.done and run.rank == 0:
                trainer.take_best()
                adapters.save(folder / LORA)

        while not trainer.done:
            bucket, rows = plan.batch(trainer.step)
            batch = data.batch("train", bucket, rows[mine.start : mine.stop])
            try:
                metrics = trainer.update(*batch)
                trace.add(trainer.step, {"bucket": bucket, **metrics})
                last = trainer.step == dpo.steps
                if data.sizes["held_out"] and (last or trainer.step % dpo.watch_every == 0):
                    looked = trainer.look(held_out_batches(data, dpo, run.rank, run.world))
                    trace.add_look(trainer.step, looked)
            except TrainingDiverged as error:
                raise StageFailed(
                    f"dpo: {error}; the last good checkpoint is kept, but would diverge again. "
                    "Lower dpo.learning_rate: that training begins anew"
                ) from error
            if trainer.done or trainer.step % dpo.checkpoint_every == 0:
                run.save(metrics, fill)
        if trainer.stopped_early:
            trace.warn(
                [
                    f"stopped after update {trainer.step}: the held-out loss has not fallen since "
                    f"update {trainer.best_step}, whose adapters are kept"
                ]
            )
        trace.close()


def _tuned_net(
    teacher: Teacher, student: Artifact, config: PipelineConfig, device: torch.device
) -> tuple[nn.Module, list[float] | None]:
    """What is tuned, in the precision of the forward passes, and the noise levels to tune it on:
    None for the teacher's own.
    """
    dpo, dtype = config.dpo, getattr(torch, config.dpo.precision)
    if config.pairs.model == "teacher":
        return teacher.backbone(dtype=dtype, checkpoint_blocks=dpo.checkpoint_blocks), None
    net, grid = student_of(student, device)
    net.checkpoint_blocks = dpo.checkpoint_blocks
    return net.to(dtype), student_sigmas(grid, config.pairs.student_steps)


def held_out_batches(
    data: PairData, config: DpoConfig, rank: int, world: int
) -> Iterator[tuple[range, Pairs]]:
    """This rank's part of the held-out pairs that are looked at, in batches of one bucket. A pair
    has a slot of its own for each noise that it gets.
    """
    sizes = data.sizes["held_out"]
    stride = math.ceil(sum(sizes.values()) / HELD_OUT_PAIRS)
    size = round_size(config)
    slot = number = 0
    for bucket, count in sizes.items():
        rows = [*range(0, count, stride)] * HELD_OUT_DRAWS
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            if number % world == rank:
                yield range(slot, slot + len(part)), data.batch("held_out", bucket, part)
            slot, number = slot + len(part), number + 1


def _save_model(context: StageContext, scale: float) -> dict[str, tuple[int, str]]:
    """The student's folder with the adapters merged, put on the store; returns its files."""
    student = context.inputs["distill"]
    with (
        student.local_folder("model") as folder,
        local_lora(context.store, context.folder) as lora,
        tempfile.TemporaryDirectory() as scratch,
    ):
        base = context.config.teacher.model_copy(update={"model": str(folder), "revision": None})
        teacher = open_teacher(base)

        def merge(backbone: nn.Module) -> None:
            adapters = teacher.load_adapters(backbone, lora)
            adapters.scale(scale)
            adapters.merge()

        model = Path(scratch) / "model"
        teacher.save_student(model, merge, student.manifest.details["grid"])
        return context.put_folder(model, "model")
