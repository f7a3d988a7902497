"""Stage `distill`: LADD on Ray Train. Reads latents, runs the method of `stages/ladd`, saves a
diffusers folder.

The loop here reads top to bottom: build, resume, update, watch, save.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from pipeline.stage import StageContext, StageResult
from pipeline.store import Artifact, ArtifactStore
from pipeline.training import TrainingPlan, TrainingRun, train_on_ray
from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError, StageFailed
from stages.devices import worker_device
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError
from stages.ladd.checkpoint import CheckpointError, load_tensors
from stages.ladd.ema import ExponentialAverage
from stages.ladd.parallelize import compile_blocks, spread
from stages.ladd.sampling import initial_noise, sample_consistency, sample_euler, student_sigmas
from stages.ladd.trainer import HealthWatch, LaddTrainer, TrainingDiverged
from stages.latent_data import LatentData
from stages.sample_grid import draw_grid
from stages.teachers import open_teacher

STATE, TRACE = "state", "trace.jsonl"


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
    started = time.monotonic()
    checkpoint, devices = train_on_ray(
        context,
        train,
        settings,
        TrainingPlan(
            config.workers,
            config.cpus_per_worker,
            config.use_gpu,
            config.retries,
            config.checkpoints_kept,
        ),
    )
    hours = (time.monotonic() - started) / 3600 * devices
    try:
        return _finish(context, checkpoint, plan, hours)
    finally:
        shutil.rmtree(checkpoint, ignore_errors=True)


def train(run: TrainingRun, settings: dict[str, Any]) -> None:
    """The loop of one worker."""
    config: PipelineConfig = settings["config"]
    distill = config.distill
    device = worker_device(run.cpus)
    teacher = open_teacher(config.teacher)
    teacher.place(device)
    with tempfile.TemporaryDirectory(prefix="ladd-latents-") as cache:
        data = LatentData(settings["latents"], Path(cache), teacher.encode_prompts)
        plan = BatchPlan(data.sizes, distill.global_batch, distill.seed)
        student = teacher.backbone(
            dtype=torch.float32, checkpoint_blocks=distill.checkpoint_blocks, lora=distill.lora
        )
        frozen = teacher.backbone(checkpoint_blocks=distill.checkpoint_blocks)
        pooled_width = data.conditioning([0]).pooled_BP.shape[1]
        _prepare(student, frozen, config, device)
        trainer = LaddTrainer(student.train(), frozen, pooled_width, distill, device)
        trace = _Trace(run, settings, resumed=_resume(run, trainer))
        samples = SampleGrids(
            teacher, frozen, student, trainer.average, config, settings["prompts"], device
        )
        share = distill.global_batch // run.world
        while trainer.step < distill.total_steps:
            bucket, rows = plan.batch(trainer.step)
            latents, conditioning = data.batch(
                bucket, rows[run.rank * share : (run.rank + 1) * share]
            )
            try:
                metrics = trainer.update(latents, conditioning)
            except TrainingDiverged as error:
                raise StageFailed(
                    f"distill: {error}; the last good checkpoint is kept. Lower "
                    "distill.learning_rate or "
                    "distill.discriminator.learning_rate"
                ) from error
            trace.add(trainer.step, bucket, metrics)
            done = trainer.step == distill.total_steps
            if distill.sample_prompts and (done or trainer.step % distill.sample_every == 0):
                # On all ranks: where weights are sharded they work together.
                trace.warn(samples.put(trainer.step, settings, keep=run.rank == 0))
            if done or trainer.step % distill.checkpoint_every == 0:
                run.save(metrics, lambda folder: _fill(folder, trainer, trace, run.rank))
        trace.close()


def _resume(run: TrainingRun, trainer: LaddTrainer) -> list[str]:
    """Load the latest checkpoint, if any; returns the lines of its trace."""
    with run.resume_folder() as folder:
        if folder is None:
            return []
        try:
            trainer.load(folder / STATE)
        except CheckpointError as error:
            raise ArtifactError(f"distill: {error}") from error
        return (folder / TRACE).read_text().splitlines()


def _fill(folder: Path, trainer: LaddTrainer, trace: _Trace, rank: int) -> None:
    trainer.save(folder / STATE)
    if rank == 0:
        (folder / TRACE).write_text("".join(f"{line}\n" for line in trace.lines))


def _prepare(
    student: nn.Module, frozen: nn.Module, config: PipelineConfig, device: torch.device
) -> None:
    """Compile both nets' blocks and spread them over the workers, as the configuration says."""
    distill = config.distill
    if distill.compile_blocks:
        compile_blocks(student)
        compile_blocks(frozen)
    spread(student, device, distill.shard_over, getattr(torch, distill.precision))
    if distill.shard_teacher:
        spread(frozen, device, distill.shard_over, getattr(torch, config.teacher.dtype))


class _Trace:
    """Metrics of every update: lines for the checkpoint, TensorBoard, progress and warnings, on
    rank 0.
    """

    def __init__(self, run: TrainingRun, settings: dict[str, Any], resumed: list[str]) -> None:
        self.lines = resumed
        self._settings, self._config = settings, settings["config"].distill
        self._total = self._config.total_steps
        self._watch = HealthWatch()
        self._board = None
        if run.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            store: ArtifactStore = settings["store"]
            folder = f"{settings['folder']}/tensorboard"
            where = store.path(folder) if store.is_local else f"{store.url.rstrip('/')}/{folder}"
            self._board = SummaryWriter(where, purge_step=len(resumed) + 1 if resumed else None)
            settings["report"]("updates", len(resumed), self._total)

    def add(self, step: int, bucket: str, metrics: dict[str, float]) -> None:
        self.lines.append(json.dumps({"step": step, "bucket": bucket, **metrics}))
        if self._board is None:
            return
        self.warn(self._watch.observe(metrics))
        if step % self._config.log_every == 0 or step == self._total:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
            self._settings["report"]("updates", step, self._total)

    def warn(self, warnings: list[str]) -> None:
        for text in warnings:
            self._settings["report"](f"warning: {text}", len(self.lines), self._total)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


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
        entry = next(f for f in self.prompts.manifest.files if f.path == "held_out.parquet")
        with self.prompts.checked(entry) as path:
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
        if keep:
            settings["store"].write(f"{settings['folder']}/samples/step-{step:06d}.png", png)
        return warnings

    def _draw(self) -> tuple[bytes, list[str]]:
        steps, rows = (4, 2, 1), []
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
        return HealthWatch().observe_diversity(
            _distance(self._from_student(alike, 4)), self._teacher_distance
        )

    def _from_teacher(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        making, bucket = self.config.synthesize, Bucket(samples[0]["width"], samples[0]["height"])
        noise, _, conditioning = self._start(samples, bucket)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.frozen.dtype == torch.bfloat16
        ):
            return sample_euler(
                self.frozen,
                noise,
                conditioning,
                self.teacher.sigmas(making.steps, bucket),
                guidance_scale=making.guidance_scale,
                unconditional=self.teacher.encode_prompts([""]),
            )

    def _from_student(self, samples: list[dict[str, Any]], steps: int) -> torch.Tensor:
        noise, generators, conditioning = self._start(
            samples, Bucket(samples[0]["width"], samples[0]["height"])
        )
        sigmas = student_sigmas(self.config.distill.student_time.grid, steps)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.distill.precision == "bfloat16"
        ):
            return sample_consistency(self.student, noise, conditioning, sigmas, generators)

    def _start(self, samples: list[dict[str, Any]], bucket: Bucket):
        noise, generators = initial_noise(
            [s["seed"] for s in samples], self.teacher.latent_shape(bucket)
        )
        return (
            noise.to(self.device),
            generators,
            self.teacher.encode_prompts([s["prompt"] for s in samples]),
        )


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
        average = ExponentialAverage(backbone, config.distill.ema_decay)
        load_tensors(checkpoint / STATE, {f"average.{n}": p for n, p in average.named_parameters()})
        average.copy_to(backbone)

    files = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        teacher.save_student(
            model, load_average, config.distill.student_time.grid, lora=config.distill.lora
        )
        for path in sorted(p for p in model.rglob("*") if p.is_file()):
            name = f"model/{path.relative_to(model).as_posix()}"
            files[name] = context.store.put(path, f"{context.folder}/{name}")
    trace = (checkpoint / TRACE).read_text().splitlines()
    files["metrics.jsonl"] = context.store.put(
        checkpoint / TRACE, f"{context.folder}/metrics.jsonl"
    )
    for name in context.store.list(context.folder):
        if name.startswith(("samples/", "tensorboard/")):
            content = context.store.read(f"{context.folder}/{name}")
            files[name] = (len(content), hashlib.sha256(content).hexdigest())
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
