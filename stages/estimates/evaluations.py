"""The work of `eval`."""

from __future__ import annotations

from pipeline.base.work import Above, Phase, Work, pieces_of
from schemas.config import PipelineConfig
from schemas.resources import WorkerPool
from stages.estimates.pictures import drawn, file_bytes, largest, mean, sum_of, writing_seconds
from stages.estimates.scores import crops, feature_bytes, judged, judged_crops, weight_bytes
from stages.judging.systems import floor_of, systems_of
from stages.teachers import model_costs

_TIMED = 4
"""Micro-batches of each system that are timed, the first among them."""
_REPORT_SECONDS = 10.0
"""Intervals, charts and the page, for a few hundred prompts."""


def evaluating(config: PipelineConfig, above: Above) -> Work | None:
    """Workers of a pool draw and judge every system's pictures; one of them is timed; then one
    process writes the report. None if nobody knows how many prompts there are.
    """
    wanted, costs = config.eval, model_costs(config.teacher)
    known = above.get("prompts", {}).get("held_out")
    if costs is None or (known is None and wanted.url is None):
        return None
    prompts = wanted.prompts if wanted.url is not None else min(wanted.prompts, known or 0)
    systems, others = systems_of(config), floor_of(config)
    alike = min(prompts, wanted.alike_prompts) * wanted.alike_seeds
    parts, timed, size = [], [], wanted.micro_batch
    for system in (*systems, *others):
        how = config.synthesize.at(steps=system.steps)
        passes = how.passes if system.kind == "teacher" else system.steps
        number = prompts + (alike if system in systems else 0)
        parts.append(drawn(config, costs, number, passes, size))
        if system in systems:
            timed.append(drawn(config, costs, _TIMED * size, passes, size))
    pictures, again = prompts * len([*systems, *others]), alike * len(systems)
    spaces = [wanted.features.name, *(space.name for space in wanted.more_features)]
    names = [*(score.name for score in wanted.scores), *spaces]
    parts.append(judged(config, names, pictures))
    parts.append(judged(config, [spaces[0]], again))
    parts.append(judged_crops(config, spaces[0], pictures))
    student = costs.folder_bytes()
    features = sum(map(feature_bytes, spaces)) + mean(config, crops) * feature_bytes(spaces[0])
    buckets = len(config.prompts.buckets)
    judging = Phase(
        "pictures",
        sum_of(*parts),
        core_seconds=writing_seconds(config, pictures, "png"),
        by=wanted.pool,
        pieces=len([*systems, *others]) * pieces_of(prompts, wanted.prompts_per_shard, buckets),
    )
    one = WorkerPool.model_validate({**wanted.pool.model_dump(), "workers": 1})
    each = file_bytes(config, "png") + features
    return Work(
        samples=pictures + again,
        unit="pictures",
        phases=(
            judging,
            Phase("timings", sum_of(*timed), by=one),
            Phase("report", core_seconds=_REPORT_SECONDS * (1 + prompts / 250), starts=False),
        ),
        store_bytes=pictures * each + again * feature_bytes(spaces[0]) + 2 * student,
        scratch_bytes=2 * student + 2 * wanted.prompts_per_shard * each,
        device_bytes=costs.sampling_bytes(largest(config), size) + weight_bytes(names),
        model_bytes=costs.folder_bytes(),
    )
