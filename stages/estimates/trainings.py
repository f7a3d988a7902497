"""The work of `distill` and `dpo`."""

from __future__ import annotations

from pipeline.base.training import TrainingPlan
from pipeline.base.work import Above, Part, Phase, Work
from schemas.config import PipelineConfig
from stages.estimates.pictures import (
    drawn,
    embedding_bytes,
    largest,
    latent_bytes,
    mean,
    pair_bytes,
    sum_of,
)
from stages.estimates.scores import judged, weight_bytes
from stages.ladd.passes import head_passes, passes
from stages.teachers import model_costs
from stages.teachers.costs import ModelCosts

_ALIKE = 4
"""Pictures of one prompt that each sample grid compares."""
_LOOK_SEEDS = 2
_SAVING = 1e-9
"""Seconds of the stage's own process for each byte of a student that it writes."""


def distilling(config: PipelineConfig, above: Above) -> Work | None:
    """Workers of a training make all updates, with looks and sample grids between them; then one
    process saves the student.
    """
    distill, costs = config.distill, model_costs(config.teacher)
    if costs is None:
        return None
    samples = distill.total_steps * distill.global_batch
    rounds = distill.micro_batch or -(-distill.global_batch // distill.workers)
    heads_alone = distill.total_steps - distill.steps
    average = (
        distill.steps * passes(distill, train_student=True)
        + heads_alone * passes(distill, train_student=False)
    ) / distill.total_steps
    flops = average * mean(config, costs.forward)
    flops += head_passes(distill) * mean(config, lambda b: costs.heads(distill, b))
    calls = samples / rounds * costs.blocks
    update = Part(
        "compiled" if distill.compile_blocks else "training", samples * flops, average * calls
    )
    is_online = config.encode.embeddings == "online"
    text = Part("text", samples * costs.text(), 2 * calls) if is_online else None
    parts = (update, text) if text is not None else (update,)
    trained = TrainingPlan.of(distill)
    kept = distill.checkpoints_kept + bool(distill.decay_share) * distill.checkpoints_kept
    if distill.keep_every is not None:
        kept += distill.total_steps // distill.keep_every
    kept = min(kept, -(-distill.total_steps // distill.checkpoint_every))
    checkpoint, student = costs.checkpoint_bytes(distill), costs.folder_bytes()
    return Work(
        samples=samples,
        unit="samples",
        phases=(
            Phase("updates", parts, by=trained),
            Phase("looks", _seen(config, costs), by=trained, starts=False),
            Phase("saving", core_seconds=_SAVING * (checkpoint + 3 * student), starts=False),
        ),
        counts={"updates": distill.total_steps},
        store_bytes=kept * checkpoint + student,
        scratch_bytes=2 * checkpoint / distill.workers + student + _cached(config, costs, above),
        device_bytes=costs.training_bytes(config) + (costs.text_bytes() if is_online else 0),
        model_bytes=2 * costs.folder_bytes(),
    )


def _cached(config: PipelineConfig, costs: ModelCosts, above: Above) -> float:
    """Bytes that a worker keeps of latents and embeddings of a remote store."""
    if not _is_remote(config):
        return 0.0
    made, number = above.get("encode", {}), 2 if config.encode.dtype == "float16" else 4
    whole = made.get("ok", 0) * latent_bytes(config, costs, number)
    whole += made.get("prompts", 0) * embedding_bytes(config, costs)
    return min(config.distill.cache_gb * 1e9, whole)


def _pairs_here(config: PipelineConfig, costs: ModelCosts) -> float:
    """Bytes of the embeddings that a worker of the tuning keeps, and of its copy of the pairs."""
    kept = 2 * costs.embedding() + (pair_bytes(config, costs) if _is_remote(config) else 0)
    return config.pairs.prompts * kept


def _is_remote(config: PipelineConfig) -> bool:
    local = ("file://", "local://", "memory://")
    return "://" in config.store and not config.store.startswith(local)


def _seen(config: PipelineConfig, costs: ModelCosts) -> tuple[Part, ...]:
    """Sample grids and looks at held-out prompts."""
    distill, teacher = config.distill, config.synthesize.passes
    levels = len(distill.student_time.grid)
    parts: list[tuple[Part, ...]] = []
    if distill.sample_prompts:
        grids = -(-distill.total_steps // distill.sample_every)
        # At 1, 2, 4, ... steps, and the first prompt several times.
        steps = 2 * levels - 1
        pictures = grids * distill.sample_prompts
        parts.append(drawn(config, costs, pictures, steps, 1))
        parts.append(drawn(config, costs, grids * _ALIKE, levels, _ALIKE))
        parts.append(drawn(config, costs, distill.sample_prompts + _ALIKE, teacher, 1))
    look = distill.look
    if look is not None:
        pictures = look.prompts * _LOOK_SEEDS
        looks = distill.total_steps // look.every
        parts.append(drawn(config, costs, looks * pictures, look.steps or levels, look.micro_batch))
        parts.append(drawn(config, costs, pictures, teacher, look.micro_batch))
        names = [*(score.name for score in look.scores), look.features.name]
        parts.append(judged(config, names, (looks + 1) * pictures))
    return sum_of(*parts)


def tuning(config: PipelineConfig) -> Work | None:
    """Workers of a training tune adapters, at most for all updates; then those of `pairs.pool`
    sample at every scale, and one process saves the student.
    """
    dpo, pairs, costs = config.dpo, config.pairs, model_costs(config.teacher)
    if costs is None:
        return None
    samples = dpo.steps * dpo.global_batch
    rounds = dpo.micro_batch or -(-dpo.global_batch // dpo.workers)
    # A pair is two pictures; each passes forward and backward with the adapters, and without.
    held_out = round(pairs.prompts * pairs.held_out_fraction) * (dpo.steps // dpo.watch_every)
    forward = mean(config, costs.forward)
    update = Part(
        "training",
        (samples * 6 + held_out * 4) * forward,
        samples / rounds * 6 * costs.blocks,
    )
    text = Part("text", samples * costs.text(), samples / rounds * 2 * costs.blocks)
    scales = len({0.0, *dpo.scales})
    pictures = scales * dpo.chooser_prompts
    names = [dpo.chooser.name, *([pairs.reward.name] if pairs.url is None else ())]
    sweep = Phase(
        "scales",
        (
            *drawn(config, costs, pictures, pairs.student_steps, pairs.micro_batch),
            *judged(config, names, pictures),
        ),
        by=pairs.pool,
        pieces=scales,
    )
    checkpoint, student = 4 * costs.adapter_bytes(dpo.lora), costs.folder_bytes()
    in_float32 = config.distill.precision == "float32"
    return Work(
        samples=samples,
        unit="pairs",
        phases=(
            Phase("updates", (update, text), by=TrainingPlan.of(dpo)),
            sweep,
            Phase("saving", core_seconds=_SAVING * 3 * student, starts=False),
        ),
        counts={"updates": dpo.steps},
        store_bytes=dpo.checkpoints_kept * checkpoint + student + costs.adapter_bytes(dpo.lora),
        scratch_bytes=2 * student + 2 * checkpoint + _pairs_here(config, costs),
        device_bytes=max(
            costs.tuning_bytes(config) + costs.text_bytes(),
            costs.sampling_bytes(largest(config), pairs.micro_batch, in_float32=in_float32)
            + weight_bytes(names),
        ),
        model_bytes=2 * costs.folder_bytes(),
    )
