"""Stage `distill`: LADD on Ray Train. Plans the batches, trains, and saves a diffusers folder.

The workers' loop is in `stages/training/distill_loop.py`, the method in `stages/ladd/`.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.checkpoints import Trained
from pipeline.base.course import STATE, Course
from pipeline.base.pins import names_student
from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.training import TrainingPlan, train_on_ray
from pipeline.base.work import Above, Work
from schemas.config import LookConfig, PipelineConfig
from schemas.errors import ConfigError
from stages.estimates.trainings import distilling
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError
from stages.pictures.student import check_steps
from stages.scores import FEATURES, check_model, check_score, score_models
from stages.teachers import check_start, check_teacher, model_costs, open_teacher, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.judgeable import check_judged
from stages.training.start_files import start_model
from stages.training.trackers import check_trackers

if TYPE_CHECKING:
    from stages.ladd.backbone import Backbone

_AVERAGE = "average."
"""How the averaged weights are named in a training's state."""


def check(config: PipelineConfig) -> None:
    """Raise ConfigError unless the teacher's folder is whole, that of the student's start is of the
    same architecture, what is asked for is installed, and a look can be taken.
    """
    check_teacher(config.teacher)
    if config.distill.optimizer_bits == 8 and find_spec("torchao") is None:
        raise ConfigError(
            "distill.optimizer_bits: moments in 8 bits need torchao; pip install "
            "'ladd-pipeline[low-bit]'"
        )
    check_trackers(config)
    if config.distill.init is not None:
        check_start(config.teacher, Path(config.distill.init))
    if config.distill.look is not None:
        _check_look(config, config.distill.look)


def _check_look(config: PipelineConfig, look: LookConfig) -> None:
    if config.prompts.held_out_fraction == 0:
        raise ConfigError("distill.look: prompts.held_out_fraction is 0, there is nothing to see")
    if look.steps is not None:
        check_steps("distill.look.steps", look.steps, config.distill.student_time.grid)
    for score in look.scores:
        check_score("distill.look.scores", score.name)
    check_score("distill.look.features", look.features.name, FEATURES)
    for model in (*look.scores, look.features):
        check_model(model)
    names = [score.name for score in look.scores]
    check_judged(config, "distill.look.scores", names, "held_out")


def models(config: PipelineConfig) -> list[HubModel]:
    distill, look = config.distill, config.distill.look
    found = teacher_models(config.teacher)
    if distill.init is not None and not names_student(distill.init):
        found.append(start_model(distill.init, distill.init_revision))
    return found if look is None else found + score_models([*look.scores, look.features])


def estimate(config: PipelineConfig) -> str:
    distill, costs = config.distill, model_costs(config.teacher)
    memory_text = ""
    if costs is not None:
        memory_text = f", about {costs.training_bytes(config) / 1e9:.1f} GB a worker"
    return (
        f"{distill.steps:,} updates of {distill.global_batch}, at least 6 passes a sample"
        f"{memory_text}"
    )


def work(config: PipelineConfig, above: Above) -> Work | None:
    return distilling(config, above)


def course(config: PipelineConfig) -> Course:
    """The trunk is the updates before the decay, the tail the decay."""
    return Course(config.distill.trunk_steps, config.distill.total_steps, takes=_AVERAGE)


def run(context: StageContext) -> StageResult:
    from stages.training.distill_loop import train

    config = context.config.distill
    sizes = {
        name: sum(part["rows"] for part in parts)
        for name, parts in context.inputs["encode"].details["buckets"].items()
    }
    try:
        plan = BatchPlan(sizes, config.global_batch, config.seed)
    except EmptyPlanError as error:
        raise ConfigError(str(error)) from error
    time = config.student_time
    if time.warmup_steps >= config.steps and 0 in time.warmup_probabilities:
        context.warn(
            f"all {config.steps} steps are warm-up (distill.student_time.warmup_steps is "
            f"{time.warmup_steps}): levels whose warm-up probability is 0 are never trained"
        )
    for name in plan.short_buckets:
        context.warn(f"bucket {name} is left out: it holds fewer samples than a batch")
    way = course(context.config)
    with train_on_ray(context, train, TrainingPlan.of(config), way) as trained:
        return _finish(context, trained, plan)


def _finish(context: StageContext, trained: Trained, plan: BatchPlan) -> StageResult:
    """Turn the last checkpoint, or the chosen one, into the artifact: a diffusers folder, the trace
    and the sample grids.
    """
    from stages.ladd.checkpoint import load_tensors
    from stages.ladd.ema import averaged_tensors
    from stages.training.choice import chosen
    from stages.training.start import student_start
    from stages.training.trace import SIGNALS, TRACE

    config = context.config
    teacher = open_teacher(config.teacher)
    grid = teacher.student_grid(config.distill.student_time)

    def load_average(backbone: Backbone) -> None:
        averages = {f"{_AVERAGE}{name}": p for name, p in averaged_tensors(backbone).items()}
        load_tensors(checkpoint / STATE, averages)

    with (
        chosen(context, trained, course(config)) as (update, checkpoint),
        student_start(context, teacher) as start,
        tempfile.TemporaryDirectory(prefix=scratch_prefix("student")) as scratch,
    ):
        model = Path(scratch) / "model"
        start.save_student(model, load_average, grid, lora=config.distill.lora)
        files = context.put_folder(model, "model")
    trace = trained.folder / TRACE
    files["metrics.jsonl"] = context.store.put(trace, f"{context.folder}/metrics.jsonl")
    _copy_trunk_samples(context)
    files |= context.written("samples/", "tensorboard/", SIGNALS)
    rows = [json.loads(line) for line in trace.read_text().splitlines()]
    counts, metrics = _summary(rows, update)
    counts |= {"samples": sum(plan.sizes.values()), "batches_per_epoch": plan.batches_per_epoch}
    details = {
        "model": "model",
        "grid": list(grid.levels),
        "samples": sorted(name for name in files if name.startswith("samples/")),
        "short_buckets": plan.short_buckets,
        "training": trained.details | {"update": update},
        "init": config.distill.init,
    }
    return StageResult(
        files=files,
        counts=counts,
        metrics=metrics,
        details=details,
        device_hours=trained.work.device_hours,
    )


def _summary(rows: list[dict[str, Any]], update: int) -> tuple[dict[str, int], dict[str, float]]:
    """Return counts, and mean losses of the last 50 updates of the student, with the figures of the
    look at the artifact's `update`, if there was one.
    """
    import numpy as np

    from stages.judging.look import HELD_OUT

    last = [row for row in rows if "student_loss" in row][-50:]
    metrics = {
        name: float(np.mean([row[name] for row in last]))
        for name in ("student_loss", "discriminator_loss")
    }
    for row in rows:
        if row["step"] == update:
            metrics |= {name: value for name, value in row.items() if name.startswith(HELD_OUT)}
    counts = {
        "updates": sum("bucket" in row for row in rows),
        "skipped": sum("skipped" in row for row in rows),
    }
    return counts, metrics


def _copy_trunk_samples(context: StageContext) -> None:
    """Copy the sample grids of the trunk, which all lengths share, to the artifact's."""
    last = f"step-{context.config.distill.trunk_steps:06d}.png"
    for name in context.store.list(f"{context.training_folder}/samples"):
        if name <= last:
            source = f"{context.training_folder}/samples/{name}"
            context.store.copy(source, f"{context.folder}/samples/{name}")
