"""The systems that an evaluation compares, and the shards of pictures that it plans for them.

A shard holds one system's pictures of some prompts of one bucket; a stopped evaluation resumes with
the shards that are missing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.config import EvalConfig, PipelineConfig
from stages.ladd.grid import steps_title
from stages.texts.identity import seed_of

if TYPE_CHECKING:
    from stages.pictures.samplers import PlannedSample

FLOOR = "floor"
"""The name of the teacher with other seeds."""
TIMING = "shards/timing"
"""The shard that measures seconds per picture; it holds no pictures."""


@dataclass(frozen=True)
class System:
    """One way of making pictures: a model at a number of steps."""

    kind: Literal["teacher", "student", "tuned"]
    steps: int
    name: str

    @property
    def title(self) -> str:
        model = "tuned student" if self.kind == "tuned" else self.kind
        return f"{model}, {steps_title(self.steps)}"


def systems_of(config: PipelineConfig) -> list[System]:
    """All systems, first the teacher at its own number of steps: the reference for the others. It
    is not listed again if the student takes as many.
    """
    steps = sorted(set(config.eval.student_steps), reverse=True)
    own = config.synthesize.steps
    return [
        System("teacher", own, "teacher"),
        *(System("teacher", n, f"teacher_{n}") for n in steps if n != own),
        *(System("student", n, f"student_{n}") for n in steps),
        *(System("tuned", n, f"tuned_{n}") for n in [config.eval.tuned_steps] if config.eval.tuned),
    ]


def floor_of(config: PipelineConfig) -> list[System]:
    """The teacher that samples the prompts from other seeds, if it is wanted: not one of the
    systems, but what their distances are held against.
    """
    return [System("teacher", config.synthesize.steps, FLOOR)] if config.eval.floor else []


@dataclass(frozen=True)
class PlannedShard:
    """One system's pictures of some samples of one bucket."""

    name: str
    """Path relative to the artifact, without file extension."""
    system: str
    alike: bool
    """Whether it holds several pictures of each of a few prompts, only to measure diversity."""
    samples: list[PlannedSample]


def plan_shards(
    samples: list[PlannedSample], systems: list[System], config: PipelineConfig
) -> dict[str, PlannedShard]:
    """Plan the shards, by name. Every system, and the floor with other seeds, generates all samples
    once, and every system the first `eval.alike_prompts` of them `eval.alike_seeds` times.
    """
    wanted = config.eval
    shards = {}
    plans = (
        (False, samples, systems),
        (False, with_other_seeds(samples, config), floor_of(config)),
        (True, alike_samples(samples, wanted), systems),
    )
    for is_alike, rows, by in plans:
        prefix = "alike-" if is_alike else ""
        size = wanted.prompts_per_shard * (wanted.alike_seeds if is_alike else 1)
        for bucket, members in sorted(_by_bucket(rows).items()):
            for start in range(0, len(members), size):
                for system in by:
                    name = f"shards/{system.name}/{prefix}{bucket}-{start // size:06d}"
                    part = members[start : start + size]
                    shards[name] = PlannedShard(name, system.name, is_alike, part)
    return shards


def alike_samples(samples: list[PlannedSample], config: EvalConfig) -> list[PlannedSample]:
    """The first `alike_prompts` of the samples, each with `alike_seeds` seeds in a row."""
    return [
        {**sample, "key": f"{sample['key']}-{i:02d}", "seed": (sample["seed"] + i) % 2**63}
        for sample in samples[: config.alike_prompts]
        for i in range(config.alike_seeds)
    ]


def with_other_seeds(samples: list[PlannedSample], config: PipelineConfig) -> list[PlannedSample]:
    """The samples of the floor: the same prompts, with seeds of their own."""
    return [
        {**s, "seed": seed_of(config.prompts.seed, s["prompt"], 0, purpose="floor")}
        for s in samples
    ]


def shards_of(shards: dict[str, PlannedShard], system: str, *, alike: bool) -> list[PlannedShard]:
    """A system's shards, either those of alike pictures or the others, sorted by name."""
    mine = [s for s in shards.values() if s.system == system and s.alike == alike]
    return sorted(mine, key=lambda shard: shard.name)


def _by_bucket(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    buckets = defaultdict(list)
    for row in rows:
        buckets[row["bucket"]].append(row)
    return buckets
