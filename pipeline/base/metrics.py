"""What a run tells Prometheus, through Ray: the agent of every node serves it on the node's metrics
port, under the names that `exported` returns. Without a Ray nothing is told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.records import ShardStats


@dataclass(frozen=True)
class Measure:
    """One measure, by the tags that tell its series apart."""

    help: str
    tags: tuple[str, ...]
    is_counter: bool = True


MEASURES = {
    "ladd_shards": Measure("Shards that were made", ("stage",)),
    "ladd_samples": Measure("Samples of these shards, by what became of them", ("stage", "status")),
    "ladd_bytes": Measure("Bytes that were written into these shards", ("stage",)),
    "ladd_shard_seconds": Measure("Seconds that workers took for these shards", ("stage",)),
    "ladd_retries": Measure("Stages that lost a process and were tried again", ("stage",)),
    "ladd_failures": Measure("Stages that failed", ("stage",)),
    "ladd_warnings": Measure("Warnings", ("stage",)),
    "ladd_progress_done": Measure("How much of a stage is done", ("stage", "unit"), False),
    "ladd_progress_goal": Measure("How much there is to do", ("stage", "unit"), False),
    "ladd_seconds_left": Measure("Time left, at the rate so far", ("stage", "unit"), False),
    "ladd_stage_seconds": Measure("How long a finished stage took", ("stage",), False),
    "ladd_update": Measure("The update that a training has reached", ("stage",), False),
    "ladd_training": Measure(
        "A figure of a training, as trackers have it: losses, rates, speed",
        ("stage", "figure"),
        False,
    ),
}
_made: dict[str, Any] = {}


def exported(name: str) -> str:
    """Return the name under which Prometheus sees a measure."""
    return f"ray_{name}_total" if MEASURES[name].is_counter else f"ray_{name}"


def count(name: str, value: float = 1.0, **tags: str) -> None:
    """Add to a counter."""
    if value > 0 and (metric := _metric(name)) is not None:
        metric.inc(value, tags=tags)


def put(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if (metric := _metric(name)) is not None:
        metric.set(value, tags=tags)


def count_shard(stage: str, stats: ShardStats) -> None:
    """Tell of a shard that was made."""
    count("ladd_shards", stage=stage)
    count("ladd_bytes", sum(stats.sizes.values()), stage=stage)
    count("ladd_shard_seconds", stats.seconds, stage=stage)
    for status, number in stats.by_status.items():
        count("ladd_samples", number, stage=stage, status=status)


def put_training(stage: str, update: int, figures: Mapping[str, float]) -> None:
    """Tell how far a training is, and its figures."""
    put("ladd_update", update, stage=stage)
    for figure, value in figures.items():
        put("ladd_training", value, stage=stage, figure=figure)


def _metric(name: str) -> Any:
    """Return Ray's metric, or None if this process has no Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _made:
        from ray.util.metrics import Counter, Gauge

        measure = MEASURES[name]
        kind = Counter if measure.is_counter else Gauge
        _made[name] = kind(name, description=measure.help, tag_keys=measure.tags)
    return _made[name]
