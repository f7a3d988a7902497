"""Computes the report from the systems' pictures: pure functions of loaded arrays.

Means with intervals, distances to the teacher's own pictures, win rates, gates, curves.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from pipeline.base.store import Artifact
from schemas.config import EvalConfig, PipelineConfig
from schemas.report import (
    Curve,
    Interval,
    LineageStep,
    Report,
    ScoreCard,
    SystemResult,
    WallPicture,
    WinRate,
)
from stages.judging.distances import distances_of, too_few
from stages.judging.drawn import Drawn
from stages.judging.gates import gate_result
from stages.judging.measures import measures_of
from stages.judging.systems import FLOOR, System
from stages.ladd.grid import steps_title
from stages.scores import card_of
from stages.scores.diversity import diversity_by_prompt

_CURVE_POINTS = 300


def make_report(
    config: PipelineConfig,
    systems: list[System],
    drawn: dict[str, Drawn],
    seconds_per_picture: dict[str, float],
    lineage: dict[str, Artifact],
    traces: dict[str, list[dict[str, Any]]],
) -> Report:
    """Build the report. The first of `systems` is the reference for the others; `drawn` holds the
    floor's pictures too, if there is one; `traces` holds the training metrics by stage, from
    `read_trace`.
    """
    reference, measures = drawn[systems[0].name], measures_of(config.eval)
    results = [
        result_of(config, system, drawn[system.name], reference, seconds_per_picture[system.name])
        for system in systems
    ]
    gates = [gate_result(name, demand, results) for name, demand in config.eval.gates.items()]
    cards = {score.name: card_of(score) for score in config.eval.scores}
    return Report(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        headline=_headline(results, cards),
        passed=all(gate.passed for gate in gates),
        teacher=config.teacher.model or f"{config.teacher.family} (embedded)",
        prompts=len(reference.rows),
        cards=cards,
        feature_space=card_of(config.eval.features),
        more_spaces={space.name: card_of(space) for space in config.eval.more_features},
        floor=distances_of(drawn[FLOOR], reference, measures) if FLOOR in drawn else {},
        too_few=too_few(reference, measures),
        systems=results,
        win_rates=list(_win_rates(drawn, systems, config.eval)),
        gates=gates,
        curves=[curve for stage, rows in traces.items() for curve in _curves(stage, rows)],
        data=_data(lineage),
        tuning=_tuning(lineage),
        wall=_wall(reference.rows, config.eval.wall_prompts),
        lineage=[_step(artifact) for artifact in lineage.values()],
        environment=lineage["distill"].manifest.environment,
    )


def read_trace(trained: Artifact) -> list[dict[str, Any]]:
    """Read the metrics of every update of a `distill` or `dpo` artifact."""
    with trained.checked(trained.entry("metrics.jsonl")) as path:
        return [json.loads(line) for line in path.read_text().splitlines()]


def result_of(
    config: PipelineConfig, system: System, mine: Drawn, reference: Drawn, seconds: float
) -> SystemResult:
    """Measure one system; `reference` has the teacher's own pictures of the same prompts."""
    is_teacher = system.kind == "teacher"
    assert mine.alike_PSF is not None
    distances = distances_of(mine, reference, measures_of(config.eval))
    diversity = interval_of(diversity_by_prompt(mine.alike_PSF), config.eval)
    guidance = config.synthesize.guidance_range or config.synthesize.guidance_scale
    return SystemResult(
        name=system.name,
        title=system.title,
        kind=system.kind,
        steps=system.steps,
        guidance_scale=guidance if is_teacher else None,
        scores={name: interval_of(values, config.eval) for name, values in mine.scores.items()},
        by_bucket={
            bucket: _means(mine, "bucket", bucket) | _in_bucket(config, bucket, mine, reference)
            for bucket in _values_of(mine, "bucket")
        },
        by_category={c: _means(mine, "category", c) for c in _values_of(mine, "category")},
        distances={name: interval.mean for name, interval in distances.items()},
        diversity=diversity.mean,
        intervals=distances | {"diversity": diversity},
        seconds_per_picture=seconds,
    )


def _values_of(drawn: Drawn, column: str) -> list[str]:
    return sorted({row[column] for row in drawn.rows})


def _mask(drawn: Drawn, column: str, value: str) -> np.ndarray:
    return np.array([row[column] == value for row in drawn.rows])


def _means(drawn: Drawn, column: str, value: str) -> dict[str, float]:
    mask = _mask(drawn, column, value)
    return {name: float(values[mask].mean()) for name, values in drawn.scores.items()}


def _in_bucket(
    config: PipelineConfig, bucket: str, drawn: Drawn, reference: Drawn
) -> dict[str, float]:
    """The distances within a bucket for which it has pictures enough."""
    measures = [m for m in measures_of(config.eval) if m.name in ("fid", "kid")]
    found = distances_of(drawn, reference, measures, _mask(drawn, "bucket", bucket))
    return {name: interval.mean for name, interval in found.items()}


def interval_of(values: np.ndarray, config: EvalConfig) -> Interval:
    """The mean of (n,) values, one per prompt, with its 95 % percentile bootstrap interval."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean=mean, low=mean, high=mean)
    bounds = bootstrap(
        (values,),
        np.mean,
        n_resamples=config.bootstrap,
        method="percentile",
        batch=256,
        rng=np.random.default_rng(config.seed),
    ).confidence_interval
    return Interval(mean=mean, low=float(bounds.low), high=float(bounds.high))


def _win_rates(
    drawn: dict[str, Drawn], systems: list[System], config: EvalConfig
) -> Iterator[WinRate]:
    """Students against the teacher at equal steps and at its own steps; tuned against untuned."""
    for system in systems:
        if system.kind == "teacher":
            continue
        rivals = [systems[0].name, f"teacher_{system.steps}"]
        if system.kind == "tuned":
            rivals.append(f"student_{system.steps}")
        for rival in dict.fromkeys(name for name in rivals if name in drawn):
            for score, mine in drawn[system.name].scores.items():
                theirs = drawn[rival].scores[score]
                won = (mine > theirs) + 0.5 * (mine == theirs)
                yield WinRate(
                    system=system.name, against=rival, score=score, rate=interval_of(won, config)
                )


def _headline(results: list[SystemResult], cards: dict[str, ScoreCard]) -> str:
    score, card = next(iter(cards.items()))
    teacher, last = results[0], results[-1]
    if last.kind == "student":  # nothing tuned: the student at its most steps
        last = next(result for result in results if result.kind == "student")
    name = "tuned student" if last.kind == "tuned" else "student"
    percent = card.low == 0 and card.high == 1

    def show(result: SystemResult) -> str:
        value = result.scores[score].mean
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    return (
        f"In {steps_title(last.steps)} the {name} reaches {show(last)} "
        f"in {card.title.lower()}, the teacher {show(teacher)} in {teacher.steps}; the student is "
        f"{teacher.seconds_per_picture / last.seconds_per_picture:.1f} times as fast."
    )


def _wall(rows: list[dict[str, Any]], count: int) -> list[WallPicture]:
    """The first `count` samples, taken from the buckets in turn."""
    buckets = defaultdict(list)
    for row in rows:
        buckets[row["bucket"]].append(row)
    turns = [row for i in range(count) for b in sorted(buckets) for row in buckets[b][i : i + 1]]
    fields = ("key", "prompt", "bucket", "category")
    return [WallPicture(**{name: row[name] for name in fields}) for row in turns[:count]]


def _curves(stage: str, rows: list[dict[str, Any]]) -> list[Curve]:
    """The metrics of a training run, thinned to means over equal intervals."""
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                points[name].append((row["step"], float(value)))
    curves = []
    for name, pairs in points.items():
        parts = np.array_split(np.array(pairs), min(len(pairs), _CURVE_POINTS))
        curves.append(
            Curve(
                stage=stage,
                name=name,
                steps=[int(part[-1, 0]) for part in parts],
                values=[float(part[:, 1].mean()) for part in parts],
            )
        )
    return curves


def _data(lineage: dict[str, Artifact]) -> dict[str, dict[str, int]]:
    prompts = lineage["prompts"].manifest.counts
    prefix = "bucket_"
    encoded = lineage["encode"].details["buckets"]
    tables = {
        "prompts": {name: n for name, n in prompts.items() if not name.startswith(prefix)},
        "prompts by bucket": {
            name.removeprefix(prefix): n for name, n in prompts.items() if name.startswith(prefix)
        },
        "training latents by bucket": {
            bucket: sum(part["rows"] for part in parts) for bucket, parts in encoded.items()
        },
    }
    for stage, heading in (("synthesize", "synthesized pictures"), ("pairs", "preference pairs")):
        if stage in lineage:
            tables[heading] = dict(lineage[stage].manifest.counts)
    return tables


def _tuning(lineage: dict[str, Artifact]) -> dict[str, list[dict[str, float]]]:
    """The swept scales of the adapters, if the student was tuned."""
    if "dpo" not in lineage:
        return {}
    return {"adapter scale": lineage["dpo"].details["scales"]}


def _step(artifact: Artifact) -> LineageStep:
    manifest = artifact.manifest
    made_by = manifest.devices
    return LineageStep(
        stage=manifest.stage,
        key=manifest.key,
        inputs=[ref.key for ref in manifest.inputs],
        started=manifest.started,
        seconds=manifest.seconds,
        device_hours=manifest.device_hours,
        counts=manifest.counts,
        devices=f"{made_by.count:g} x {made_by.kind}" if made_by is not None else "",
        expected=made_by.expected if made_by is not None else None,
        accepted=artifact.accepted,
    )
