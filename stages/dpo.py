"""Stage `dpo`: preference tuning. Trains adapters on the teacher or the student, then merges them
into the student at the scale that a second score rates best.

The workers' loop is in `stages/training/dpo_loop.py`, the method in `stages/ladd/dpo_trainer.py`.
The adapters are saved before any scale is tried, and each scale's result as soon as it is known, so
a stopped stage resumes from there.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.course import Course
from pipeline.base.markers import finished_shards
from pipeline.base.scratch import scratch_prefix
from pipeline.base.shards import ShardWriter
from pipeline.base.stage import StageContext, StageResult, files_of
from pipeline.base.training import TrainingPlan, train_on_ray
from pipeline.base.work import Above, Work
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from schemas.records import ShardStats
from stages.estimates.trainings import tuning
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError
from stages.pictures.student import check_steps
from stages.scores import check_model, check_score, score_models
from stages.teachers import check_teacher, open_teacher, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.judgeable import check_judged
from stages.training.trackers import check_trackers

if TYPE_CHECKING:
    from stages.ladd.backbone import Backbone

TUNED = "shards/tuned"
"""The shard that marks the adapters as trained and stored in the artifact's folder."""


def check(config: PipelineConfig) -> None:
    """Raise ConfigError if the score that chooses the scale is unknown, also made the pairs or
    cannot judge the prompts, if the student does not take `pairs.student_steps` steps, or for a
    model's folder that is not whole.
    """
    check_teacher(config.teacher)
    check_trackers(config)
    pairs = config.pairs
    check_steps("pairs.student_steps", pairs.student_steps, config.distill.student_time.grid)
    check_score("dpo.chooser", config.dpo.chooser.name)
    check_judged(config, "dpo.chooser", [config.dpo.chooser.name], "train")
    check_model(config.dpo.chooser)
    if pairs.url is None and config.dpo.chooser.name == pairs.reward.name:
        raise ConfigError(
            f"dpo.chooser is {config.dpo.chooser.name}, which also ranks the pairs "
            "(pairs.reward): a score that was trained for cannot judge; name another score"
        )


def models(config: PipelineConfig) -> list[HubModel]:
    judges = [config.dpo.chooser, *([config.pairs.reward] if config.pairs.url is None else ())]
    return teacher_models(config.teacher) + score_models(judges)


def estimate(config: PipelineConfig) -> str:
    dpo = config.dpo
    return (
        f"up to {dpo.steps:,} updates of {dpo.global_batch}, 6 passes a pair; "
        f"{len({0.0, *dpo.scales})} scales on {dpo.chooser_prompts:,} prompts"
    )


def work(config: PipelineConfig, above: Above) -> Work | None:
    return tuning(config)


def course(config: PipelineConfig) -> Course:
    """The trunk is all updates; in the tail, a last look is taken and the adapters are saved."""
    return Course(config.dpo.steps, config.dpo.steps, takes=None)


def run(context: StageContext) -> StageResult:
    from stages.judging.adapter_scale import try_scales
    from stages.training.trace import LORA, SIGNALS

    student = context.inputs["distill"]
    tuned = finished_shards(context.store, context.folder).get(TUNED) or _tune(context)
    sweep = try_scales(context)
    if sweep.gain < 0:
        context.warn(
            f"{sweep.chooser} rates the student higher without the adapters than with them at the "
            f"best scale, {sweep.scale:g}: see `scales` in the manifest"
        )
    files = files_of([tuned, *sweep.stats])
    files |= _save_model(context, sweep.scale) | context.written("tensorboard/", SIGNALS)
    return StageResult(
        files=files,
        counts=tuned.counts,
        metrics=tuned.details["metrics"] | {"chooser_gain": sweep.gain},
        details={
            "model": "model",
            "lora": LORA,
            "grid": student.details["grid"],
            "tuned": context.config.pairs.model,
            "scale": sweep.scale,
            "scales": sweep.rows,
            "chooser": sweep.chooser,
            "short_buckets": tuned.details["short_buckets"],
            "training": tuned.details.get("training"),
        },
        device_hours=tuned.details["device_hours"] + sweep.device_hours,
    )


def _tune(context: StageContext) -> ShardStats:
    """Train on Ray Train, store adapters and trace in the artifact's folder, and mark them done."""
    from stages.training.dpo_loop import train
    from stages.training.trace import LORA, TRACE

    config = context.config.dpo
    buckets = context.inputs["pairs"].details["buckets"]
    sizes = {name: splits.get("train", 0) for name, splits in buckets.items()}
    plan = _plan(sizes, context.config)
    for name in plan.short_buckets:
        context.warn(f"bucket {name} is left out: it holds fewer pairs than a batch")
    way = course(context.config)
    with train_on_ray(context, train, TrainingPlan.of(config), way) as trained:
        checkpoint = trained.folder
        writer = ShardWriter(context.store, context.folder, TUNED)
        for path in sorted((checkpoint / LORA).iterdir()):
            writer.file("", path.read_bytes(), name=f"{LORA}/{path.name}")
        trace = (checkpoint / TRACE).read_text()
        writer.file("", trace.encode(), name="metrics.jsonl")
        counts, metrics = _summary([json.loads(line) for line in trace.splitlines()])
        details = {
            "metrics": metrics,
            "device_hours": trained.work.device_hours,
            "short_buckets": plan.short_buckets,
            "training": trained.details,
        }
        return writer.commit(counts, details)


def _summary(rows: list[dict[str, Any]]) -> tuple[dict[str, int], dict[str, float]]:
    """Return counts, and the metrics of the held-out look whose adapters are kept; without looks,
    mean metrics of the last 50 updates.
    """
    import numpy as np

    looks = [row for row in rows if "held_out_loss" in row]
    updates = [row for row in rows if "loss" in row]
    counts = {"updates": len(updates), "skipped": sum("skipped" in row for row in rows)}
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


def _save_model(context: StageContext, scale: float) -> dict[str, tuple[int, str]]:
    """Merge the adapters into the student and upload its folder; returns the folder's files."""
    from stages.judging.adapter_scale import local_lora

    student = context.inputs["distill"]
    with (
        student.local_folder("model") as folder,
        local_lora(context.store, context.folder) as lora,
        tempfile.TemporaryDirectory(prefix=scratch_prefix("student")) as scratch,
    ):
        base = context.config.teacher.model_copy(update={"model": str(folder), "revision": None})
        teacher = open_teacher(base)

        def merge(backbone: Backbone) -> None:
            adapters = teacher.load_adapters(backbone, lora)
            adapters.scale(scale)
            adapters.merge()

        model = Path(scratch) / "model"
        teacher.save_student(model, merge)
        return context.put_folder(model, "model")
