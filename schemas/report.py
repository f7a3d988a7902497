"""What an evaluation found: the content of report.json, from which the page and the model card are
made.
"""

from __future__ import annotations

from typing import Literal

from schemas.base import Frozen
from schemas.manifest import Environment


class Interval(Frozen):
    """A mean with its 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


class ScoreCard(Frozen):
    """What a score says about itself."""

    title: str
    """As a column heading: "all attributes right"."""
    explanation: str
    """One sentence."""
    low: float | None
    """Lowest possible value; None where there is none."""
    high: float | None
    """Highest possible value; None where there is none."""
    higher_is_better: bool = True
    licence: str
    """Of its weights."""
    weights: str
    """Which weights it needs, or that it needs none."""


class SystemResult(Frozen):
    """One way of making pictures: a model at a number of steps."""

    name: str
    """teacher, teacher_4, student_4, tuned_4, ..."""
    title: str
    """As shown: "student, 4 steps"."""
    kind: Literal["teacher", "student", "tuned"]
    steps: int
    guidance_scale: float | None
    """None where there is no guidance."""
    scores: dict[str, Interval]
    by_bucket: dict[str, dict[str, float]]
    """Bucket, score, mean; besides the scores also `fid`."""
    by_category: dict[str, dict[str, float]]
    """Category of prompt, score, mean."""
    distances: dict[str, float]
    """fid, patch_fid, kid, cmmd, precision, recall: to the teacher's own pictures."""
    diversity: float
    """Mean feature distance between pictures of one prompt."""
    seconds_per_picture: float
    """Sampling and decoding, measured one after another in the same run on one worker."""


class WinRate(Frozen):
    """How often `system` has a better score than `against` on the same prompt; ties count half."""

    system: str
    against: str
    score: str
    rate: Interval


class GateResult(Frozen):
    """A demand of the configuration, and what became of it."""

    name: str
    """`system.measure`."""
    demand: str
    """`>= 0.85`."""
    value: float
    passed: bool
    misses_by: float
    """0 where it passed."""


class Curve(Frozen):
    """One measure over the updates of a training."""

    stage: str
    name: str
    steps: list[int]
    values: list[float]


class LineageStep(Frozen):
    """One artifact behind the report."""

    stage: str
    key: str
    inputs: list[str]
    """Keys."""
    started: str
    seconds: float
    device_hours: float
    counts: dict[str, int]


class WallPicture(Frozen):
    """Where the picture of a prompt by a system lies in the artifact."""

    key: str
    """Of the sample; its pictures are members `<key>.png` of the systems' shards."""
    prompt: str
    bucket: str
    category: str


class Report(Frozen):
    """report.json."""

    schema_version: int = 1
    name: str
    created: str
    """UTC, ISO 8601."""
    headline: str
    """The verdict in one sentence."""
    passed: bool
    """Whether every gate holds."""
    teacher: str
    """Its name."""
    prompts: int
    """Held-out prompts that every system drew."""
    cards: dict[str, ScoreCard]
    """By score."""
    feature_space: ScoreCard
    """Of the distances and the diversity."""
    systems: list[SystemResult]
    win_rates: list[WinRate]
    gates: list[GateResult]
    curves: list[Curve]
    data: dict[str, dict[str, int]]
    """Tables of counts by heading: prompts kept and dropped, pictures by bucket, ..."""
    tuning: dict[str, list[dict[str, float]]]
    """Tables of the preference tuning by heading: the swept scales with their scores."""
    wall: list[WallPicture]
    lineage: list[LineageStep]
    environment: Environment
