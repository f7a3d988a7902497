"""Stage `distill`: LADD on Ray Train. Reads latents, runs the method of `stages/ladd`, saves a
diffusers folder.

The loop here reads top to bottom: build, resume, update, watch, save.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from pipeline.stage import StageContext, StageResult
from pipeline.store import Artifact
from pipeline.training import TrainingPlan, TrainingRun, train_on_ray
from schemas.config import DistillConfig, PipelineConfig
from schemas.errors import ConfigError, StageFailed
from stages.devices import worker_device
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError, slots_of
from stages.ladd.checkpoint import load_tensors
from stages.ladd.ema import ExponentialAverage, averaged_tensors
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.sampling import step_counts, student_sigmas
from stages.ladd.trainer import (
    HealthWatch,
    LaddTrainer,
    TrainingDiverged,
    diversity_warnings,
)
from stages.latent_data import LatentData
from stages.painters import student_painter, teacher_painter
from stages.sample_grid import draw_grid
from stages.teachers import open_teacher
from stages.teachers.protocol import Teacher
from stages.training_trace import STATE, TRACE, TrainingTrace, fill_checkpoint, resume


def run(context: StageContext) -> StageResult:
    config = context.config.distill
    sizes = {
        name: sum(part["rows"] for part in parts)
        for name, parts in context.inputs["encode"].manifest.details["buckets"].items()
    }
    try:
        plan = BatchPlan(sizes, config.global_batch, config.seed)
    except EmptyPlanError as error:
        raise ConfigError(str(error)) from error
    settings = {
        "config": context.config,
        "store": context.store,
        "folder": context.folder,
        "latents": context.inputs["encode"],
        "prompts": context.inputs["prompts"],
        "report": context.report,
    }
    time = config.student_time
    if time.warmup_steps >= config.steps and 0 in time.warmup_probabilities:
        text = (
            f"all of the {config.steps} steps are warm-up (distill.student_time.warmup_steps is "
            f"{time.warmup_steps}): levels whose warm-up probability is 0 are never trained"
        )
        context.report(f"warning: {text}", 0, 0)
    for name in plan.short_buckets:
        context.report(f"warning: bucket {name} holds fewer samples than a batch: left out", 0, 0)
    with train_on_ray(context, train, settings, TrainingPlan.of(config)) as (checkpoint, hours):
        return _finish(context, checkpoint, plan, hours)


def train(run: TrainingRun, settings: dict[str, Any]) -> None:
    """The loop of one worker."""
    config: PipelineConfig = settings["config"]
    distill = config.distill
    device = worker_device(run.cpus, run.gpus)
    teacher = open_teacher(config.teacher)
    teacher.place(device)
    cache = int(distill.cache_gb * 1e9)
    artifact = settings["latents"]
    with closing(LatentData(artifact, teacher.encode_prompts, cache_bytes=cache)) as data:
        plan = BatchPlan(data.sizes, distill.global_batch, distill.seed)
        student = _backbone(
            teacher,
            config,
            device,
            getattr(torch, distill.precision),
            dtype=torch.float32,
            lora=distill.lora,
        )
        dtype = getattr(torch, config.frozen_dtype)
        frozen = _backbone(
            teacher,
            config,
            device,
            dtype if distill.shard_teacher else None,
            dtype=dtype,
        )
        pooled_width = data.conditioning([0]).pooled_BP.shape[1]
        trainer = LaddTrainer(student.train(), frozen, pooled_width, distill, device)
        trace = TrainingTrace(
            run,
            settings,
            resume(run, trainer, settings, "distill"),
            total=distill.total_steps,
            log_every=distill.log_every,
            watch=HealthWatch().observe,
        )
        samples = SampleGrids(
            teacher, frozen, student, trainer.average, config, settings["prompts"], device
        )
        wanted = _wanted(plan, run, trainer.step, distill)
        with closing(trace), closing(data.ahead(wanted)) as batches:
            for bucket, latents, conditioning in batches:
                try:
                    metrics = trainer.update(latents, conditioning)
                except TrainingDiverged as error:
                    raise StageFailed(
                        f"distill: {error}; the last good checkpoint is kept, but would diverge "
                        "again. Lower distill.learning_rate or "
                        "distill.discriminator.learning_rate: that training begins anew"
                    ) from error
                trace.add(trainer.step, {"bucket": bucket, **metrics})
                done = trainer.step == distill.total_steps
                if distill.sample_prompts and (done or trainer.step % distill.sample_every == 0):
                    # On all ranks: where weights are sharded they work together.
                    trace.warn(samples.put(trainer.step, settings, keep=run.rank == 0))
                if done or trainer.step % distill.checkpoint_every == 0:
                    run.save(
                        metrics, lambda folder: fill_checkpoint(folder, trainer, trace, run.rank)
                    )


def _wanted(
    plan: BatchPlan, run: TrainingRun, start: int, distill: DistillConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Bucket and rows of this worker's part of every update from `start` on."""
    mine = slots_of(distill.global_batch, run.rank, run.world)
    for step in range(start, distill.total_steps):
        yield plan.part(step, mine, more=distill.objective.mismatched_share > 0)


def _backbone(
    teacher: Teacher,
    config: PipelineConfig,
    device: torch.device,
    gathered: torch.dtype | None,
    **options: Any,
) -> nn.Module:
    """A backbone, its blocks compiled where the configuration says so, and, unless `gathered` is
    None, spread over the workers, its weights gathered in that dtype. Where they are sharded each
    worker loads its shards alone.
    """
    distill = config.distill

    def prepare(net: nn.Module) -> None:
        if distill.compile_blocks:
            compile_blocks(net)
        if gathered is not None:
            spread(net, device, distill.shard_over, gathered)

    sharded = prepare if gathered is not None and distill.shard_over > 1 else None
    net = teacher.backbone(checkpoint_blocks=distill.checkpoint_blocks, shard=sharded, **options)
    if sharded is None:
        prepare(net)
    return net


@dataclass
class SampleGrids:
    """Draws teacher and student side by side while training: same prompts, same seeds, averaged
    weights.
    """

    teacher: Any
    frozen: nn.Module
    student: nn.Module
    average: ExponentialAverage
    config: PipelineConfig
    prompts: Artifact
    device: torch.device

    def __post_init__(self) -> None:
        self._teacher_pictures: dict[str, np.ndarray] = {}
        self._teacher_distance: float | None = None
        with self.prompts.checked(self.prompts.entry("held_out.parquet")) as path:
            rows = pq.read_table(path).to_pylist()
        self.samples = _one_of_each_bucket(rows, self.config.distill.sample_prompts)

    def put(self, step: int, settings: dict[str, Any], *, keep: bool) -> list[str]:
        """Write `samples/step-NNNNNN.png` beside the artifact, on the rank that is to `keep` it;
        returns health warnings.
        """
        if not self.samples:
            return []
        self.average.swap_with(self.student)
        self.student.eval()
        try:
            png, warnings = self._draw()
        finally:
            self.student.train()
            self.average.swap_with(self.student)
            if self.config.encode.embeddings == "stored":
                self.teacher.release()  # training needs no text encoders and no autoencoder
        if keep:
            settings["store"].write(f"{settings['folder']}/samples/step-{step:06d}.png", png)
        return warnings

    def _draw(self) -> tuple[bytes, list[str]]:
        steps, rows = step_counts(self.config.distill.student_time.grid), []
        for sample in self.samples:
            key = sample["key"]
            if key not in self._teacher_pictures:
                self._teacher_pictures[key] = self.teacher.decode_latents(
                    self._from_teacher([sample])
                )[0]
            pictures = [
                self.teacher.decode_latents(self._from_student([sample], n))[0] for n in steps
            ]
            rows.append((sample["prompt"], [self._teacher_pictures[key], *pictures]))
        columns = [
            f"teacher, {self.config.synthesize.steps} steps",
            *(f"student, {n} step{'s'[: n > 1]}" for n in steps),
        ]
        return draw_grid(columns, rows), self._diversity()

    def _diversity(self) -> list[str]:
        """Compare how much pictures of one prompt differ, student against teacher (four seeds of
        the first prompt).
        """
        alike = [{**self.samples[0], "seed": self.samples[0]["seed"] + i} for i in range(4)]
        if self._teacher_distance is None:
            self._teacher_distance = _distance(self._from_teacher(alike))
        most = len(self.config.distill.student_time.grid)
        student = _distance(self._from_student(alike, most))
        return diversity_warnings(student, self._teacher_distance)

    def _from_teacher(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        making = self.config.synthesize
        return teacher_painter(
            self.teacher, self.frozen, self.device, making.steps, making.guidance_scale
        )(samples)

    def _from_student(self, samples: list[dict[str, Any]], steps: int) -> torch.Tensor:
        distill = self.config.distill
        return student_painter(
            self.teacher,
            self.student,
            self.device,
            student_sigmas(distill.student_time.grid, steps),
            bfloat16=distill.precision == "bfloat16",
        )(samples)


def _distance(latents_BCHW: torch.Tensor) -> float:
    """Mean distance between the latents of a batch."""
    return torch.pdist(latents_BCHW.flatten(1).float().cpu()).mean().item()


def _one_of_each_bucket(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` samples, taking buckets in turn."""
    seen: Counter[tuple[int, int]] = Counter()
    ranked = []
    for row in rows:
        size = (row["width"], row["height"])
        ranked.append((seen[size], len(ranked), row))
        seen[size] += 1
    chosen = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:count]]
    return sorted(chosen, key=lambda row: (-row["width"] / row["height"], row["key"]))


def _finish(
    context: StageContext, checkpoint: Path, plan: BatchPlan, device_hours: float
) -> StageResult:
    """Turn the last checkpoint into the artifact: a diffusers folder, the trace, the sample
    grids.
    """
    config = context.config
    teacher = open_teacher(config.teacher)

    def load_average(backbone: nn.Module) -> None:
        averages = {f"average.{name}": p for name, p in averaged_tensors(backbone).items()}
        load_tensors(checkpoint / STATE, averages)

    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        teacher.save_student(
            model, load_average, config.distill.student_time.grid, lora=config.distill.lora
        )
        files = context.put_folder(model, "model")
    trace = (checkpoint / TRACE).read_text().splitlines()
    files["metrics.jsonl"] = context.store.put(
        checkpoint / TRACE, f"{context.folder}/metrics.jsonl"
    )
    files |= context.written("samples/", "tensorboard/")
    last = [json.loads(line) for line in trace[-50:]]
    means = {
        name: float(np.mean([row[name] for row in last]))
        for name in ("student_loss", "discriminator_loss")
    }
    counts = {
        "updates": len(trace),
        "samples": sum(plan.sizes.values()),
        "batches_per_epoch": plan.batches_per_epoch,
    }
    grids = sorted(name for name in files if name.startswith("samples/"))
    details = {
        "model": "model",
        "grid": config.distill.student_time.grid,
        "samples": grids,
        "short_buckets": plan.short_buckets,
    }
    return StageResult(
        files=files, counts=counts, metrics=means, details=details, device_hours=device_hours
    )
