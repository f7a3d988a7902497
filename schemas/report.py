"""The result of an evaluation: the content of report.json. The page and the model card are made
from it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Frozen
from schemas.manifest import Environment, Expected


class Interval(Frozen):
    """A value with its 95 % interval over prompts: a bootstrap of means (scores, win rates,
    diversity), a jackknife of distances.
    """

    mean: float
    low: float
    high: float


class ScoreCard(Frozen):
    """The description of a score."""

    title: str
    """The column heading: "all attributes right"."""
    explanation: str
    """One sentence."""
    low: float | None
    """Lowest possible value; None if there is none."""
    high: float | None
    """Highest possible value; None if there is none."""
    higher_is_better: bool = True
    licence: str
    """Licence of its weights."""
    weights: str
    """The weights it needs, or a note that it needs none."""


class SystemResult(Frozen):
    """One way of making pictures: a model at a number of steps."""

    name: str
    """teacher, teacher_4, student_4, tuned_4, ..."""
    title: str
    """As shown: "student, 4 steps"."""
    kind: Literal["teacher", "student", "tuned"]
    steps: int
    guidance_scale: float | list[float] | None
    """None without guidance; lowest and highest if every picture drew its own."""
    scores: dict[str, Interval]
    by_bucket: dict[str, dict[str, float]]
    """Bucket -> score -> mean; also contains `fid` and `kid` where a bucket has pictures enough."""
    by_category: dict[str, dict[str, float]]
    """Prompt category -> score -> mean."""
    distances: dict[str, float]
    """fid, patch_fid, kid, cmmd, precision, recall, against the teacher's pictures; in a further
    feature space with its name, such as kid_inception_features. One for which the pictures are too
    few is left out.
    """
    diversity: float
    """Mean feature distance between pictures of one prompt."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """Of each distance and of `diversity`; empty in a report from before there were intervals."""
    seconds_per_picture: float
    """Seconds of sampling and decoding; systems are measured in turn, in one run on one worker."""


class WinRate(Frozen):
    """How often `system` has a better score than `against` on the same prompt; ties count half."""

    system: str
    against: str
    score: str
    rate: Interval


class GateResult(Frozen):
    """A gate of the configuration and its outcome."""

    name: str
    """`system.measure`."""
    demand: str
    """`>= 0.85`."""
    value: float | None
    """None if there are too few pictures for the measure: the gate is missed."""
    passed: bool
    misses_by: float | None
    """0 if it passed; None without a value."""


class Curve(Frozen):
    """One metric over the updates of a training."""

    stage: str
    name: str
    steps: list[int]
    values: list[float]


class LineageStep(Frozen):
    """One artifact that the report depends on."""

    stage: str
    key: str
    inputs: list[str]
    """Keys of its inputs."""
    started: str
    seconds: float
    device_hours: float
    counts: dict[str, int]
    devices: str = ""
    """What made it, such as `8 x nvidia-h100`; empty if its manifest does not say."""
    expected: Expected | None = None
    """What was expected of it before it was made."""
    accepted: str = ""
    """Why it was declared good for a configuration that it was not made for."""


class WallPicture(Frozen):
    """Where to find each system's picture of a prompt in the artifact."""

    key: str
    """Key of the sample; its pictures are members `<key>.png` of the systems' shards."""
    prompt: str
    bucket: str
    category: str


class Report(Frozen):
    """The content of report.json."""

    schema_version: int = 1
    name: str
    created: str
    """UTC, ISO 8601."""
    headline: str
    """The verdict in one sentence."""
    passed: bool
    """Whether every gate holds."""
    teacher: str
    """The teacher's name."""
    prompts: int
    """Number of held-out prompts that every system sampled."""
    cards: dict[str, ScoreCard]
    """Descriptions by score name."""
    feature_space: ScoreCard
    """The feature space of the distances and the diversity."""
    more_spaces: dict[str, ScoreCard] = Field(default_factory=dict)
    """Further feature spaces by name; CMMD is measured in clip_features if it is one of them."""
    floor: dict[str, Interval] = Field(default_factory=dict)
    """Each distance between the teacher's pictures and its pictures from other seeds: what chance
    alone makes. Empty without `eval.floor`.
    """
    too_few: dict[str, str] = Field(default_factory=dict)
    """Distances without a figure, and why: `250 pictures, needs at least 1,025`."""
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
