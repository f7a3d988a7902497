"""The table that judges a student of the shapes world: correct attributes, distance to the
teacher's pictures, and diversity.

Every row uses the same held-out prompts and seeds. The Fréchet distance is measured in the judge's
feature space, see docs/method.md.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.bucket import Bucket
from schemas.config import GrammarSource, PipelineConfig, ScoreConfig, SynthesizeConfig
from schemas.errors import ConfigError
from stages.ladd.grid import step_counts, steps_title, student_sigmas
from stages.pictures.samplers import PlannedSample, Sampler, student_sampler, teacher_sampler
from stages.pictures.student import open_student
from stages.scores import open_features, open_score
from stages.scores.diversity import intra_prompt_diversity
from stages.scores.frechet import frechet_distance
from stages.shapes_world.captions import parse
from stages.shapes_world.scenes import render, sample_scene
from stages.teachers import open_teacher
from stages.teachers.protocol import Teacher
from stages.texts.identity import bucket_of, seed_of, split_of
from stages.texts.sources import read_grammar

BATCH = 32
CPU = torch.device("cpu")
REAL = "real scenes"
ALIKE_PROMPTS, ALIKE_SEEDS = 8, 4
"""Diversity is measured on this many prompts of each bucket, with this many pictures of each."""
Draw = Callable[[list[PlannedSample]], np.ndarray]
"""Turns samples of one bucket into pictures, uint8 (B, H, W, 3)."""


def judges_shapes(config: PipelineConfig) -> bool:
    """Whether this table judges what a configuration evaluates: the grammar's prompts, by all their
    attributes, in the judge's feature space.
    """
    return (
        any(isinstance(source, GrammarSource) for source in config.prompts.sources)
        and config.eval.url is None
        and config.eval.features.name == "judge_features"
        and any(score.name == "attributes" for score in config.eval.scores)
    )


def held_out(config: PipelineConfig, count: int) -> dict[Bucket, list[dict[str, Any]]]:
    """The first `count` distinct held-out prompts of the grammar with bucket and seed, by bucket.

    The split is by hash, so none of them is ever a training prompt of this configuration. Raises
    ConfigError if `count` is below 1, if there are not enough prompts, or if a bucket has fewer
    than two (too few for a distance).
    """
    if count < 1:
        raise ConfigError(f"{count} held-out prompts are too few to judge on; at least 1 is needed")
    prompts = config.prompts
    if prompts.held_out_fraction == 0:
        raise ConfigError("prompts.held_out_fraction is 0: there is nothing to judge on")
    drawn = dict.fromkeys(
        p
        for p in islice(read_grammar(prompts.seed), 200 * count + 10_000)
        if split_of(p, prompts.held_out_fraction) == "held_out"
    )
    if len(drawn) < count:
        raise ConfigError(
            f"prompts.held_out_fraction {prompts.held_out_fraction:g} gives {len(drawn)} distinct "
            f"prompts of the {count} to judge on: raise it, or ask for fewer"
        )
    groups: dict[Bucket, list[dict[str, Any]]] = defaultdict(list)
    for prompt in islice(drawn, count):
        bucket = Bucket.parse(bucket_of(prompt, prompts.buckets))
        seed = seed_of(prompts.seed, prompt, 0)
        groups[bucket].append(
            {"prompt": prompt, "seed": seed, "width": bucket.width, "height": bucket.height}
        )
    few = [str(bucket) for bucket, rows in sorted(groups.items()) if len(rows) < 2]
    if few:
        raise ConfigError(
            f"{count} held-out prompts give fewer than two to {', '.join(few)}: judge on more"
        )
    return dict(sorted(groups.items()))


@dataclass(frozen=True)
class Judged:
    """The quality of one sampler's pictures."""

    pictures: str
    """Name of the pictures and their sampler."""
    steps: int
    """Sampling steps; 0 for real scenes."""
    attributes: float
    """Share of pictures that show everything that their prompts state."""
    frechet: float | None
    """Distance to the pictures of the teacher at its own steps; None for real scenes."""
    diversity: float
    """Mean distance between the features of two pictures of one prompt."""
    attributes_by_bucket: dict[str, float]
    frechet_by_bucket: dict[str, float]


def at_steps(title: str, steps: int) -> str:
    """The name of a sampler's pictures."""
    return f"{title}, {steps_title(steps)}"


@dataclass(frozen=True)
class StudentLine:
    """One student in one line; each dictionary is keyed by the number of steps, most first."""

    student: str
    attributes: dict[int, float]
    """Percent."""
    not_square: dict[int, float]
    """The same over the buckets that are not square, each with the same weight."""
    frechet: dict[int, float]
    """NaN where it is unknown."""
    diversity: dict[int, float]


def student_lines(judged: list[Judged], titles: list[str]) -> list[StudentLine]:
    """One line for each student in `titles`, from the rows of `score_table`."""
    return [
        _line(title, {r.steps: r for r in judged if r.pictures == at_steps(title, r.steps)})
        for title in titles
    ]


def _line(title: str, at: dict[int, Judged]) -> StudentLine:
    return StudentLine(
        student=title,
        attributes={n: 100 * row.attributes for n, row in at.items()},
        not_square={n: 100 * _not_square(row.attributes_by_bucket) for n, row in at.items()},
        frechet={n: math.nan if row.frechet is None else row.frechet for n, row in at.items()},
        diversity={n: row.diversity for n, row in at.items()},
    )


def _not_square(by_bucket: dict[str, float]) -> float:
    sizes = {Bucket.parse(name): value for name, value in by_bucket.items()}
    wide = [value for bucket, value in sizes.items() if bucket.width != bucket.height]
    return float(np.mean(wide)) if wide else float("nan")


@torch.no_grad()
def score_table(
    config: PipelineConfig, students: dict[str, Path], count: int, report: Callable[[str], None]
) -> list[Judged]:
    """Judge real scenes, the teacher at its own and at the students' steps, then the students at
    all steps of their grids; each on the same prompts and seeds, on the CPU.

    `students` maps names to diffusers folders. Without students, the teacher uses the steps of the
    configuration's grid. Raises ConfigError as `held_out` does, and ArtifactError if a folder is
    not a student's.
    """
    samples = held_out(config, count)
    opened = {title: open_student(folder) for title, folder in students.items()}
    grids: list[Sized] = [grid for _, grid in opened.values()]
    grids = grids or [config.distill.student_time.grid]
    teacher = open_teacher(config.teacher)
    net = teacher.backbone()
    synthesize = config.synthesize

    def from_teacher(how: SynthesizeConfig) -> Draw:
        return _drawer(teacher, teacher_sampler(teacher, net, CPU, how))

    reference = f"teacher, {synthesize.steps} steps, guidance {synthesize.guidance_text}"
    samplers: dict[str, tuple[int, Draw]] = {
        REAL: (0, draw_real),
        reference: (synthesize.steps, from_teacher(synthesize)),
    }
    for n in sorted({n for grid in grids for n in step_counts(grid)}, reverse=True):
        for how in (synthesize.at(steps=n), synthesize.at(steps=n, guidance_scale=1.0)):
            name = f"{at_steps('teacher', n)}, guidance {how.guidance_text}"
            samplers[name] = n, from_teacher(how)
    for title, (backbone, grid) in opened.items():
        for n in step_counts(grid):
            sampler = student_sampler(teacher, backbone, CPU, student_sigmas(grid, n))
            samplers[at_steps(title, n)] = n, _drawer(teacher, sampler)
    examiner, seen = Examiner(samples), {}
    for name, (_, draw) in samplers.items():
        seen[name] = examiner.look(draw)
        report(f"judged: {name}")
    return [
        _judged(name, samplers[name][0], looks, seen[reference]) for name, looks in seen.items()
    ]


def _judged(name: str, steps: int, looks: dict[Bucket, Look], goal: dict[Bucket, Look]) -> Judged:
    def gathered(of: dict[Bucket, Look], what: str) -> np.ndarray:
        return np.concatenate([getattr(look, what) for look in of.values()])

    return Judged(
        pictures=name,
        steps=steps,
        attributes=float(gathered(looks, "right").mean()),
        frechet=None
        if name == REAL
        else frechet_distance(gathered(looks, "features"), gathered(goal, "features")),
        diversity=intra_prompt_diversity(gathered(looks, "alike")),
        attributes_by_bucket={str(b): float(look.right.mean()) for b, look in looks.items()},
        frechet_by_bucket={
            str(b): frechet_distance(look.features, goal[b].features)
            for b, look in looks.items()
            if name != REAL
        },
    )


def _drawer(teacher: Teacher, painter: Sampler) -> Draw:
    return lambda part: teacher.decode_latents(painter(part))


def draw_real(part: list[PlannedSample]) -> np.ndarray:
    """Render scenes that show what the samples' prompts state: uint8 (B, H, W, 3)."""
    return render(
        [
            sample_scene(parse(s["prompt"]), s["width"], s["height"], random.Random(s["seed"]))
            for s in part
        ]
    )


@dataclass(frozen=True)
class Look:
    """Measurements on one bucket: N pictures, and S pictures of each of P prompts."""

    right: np.ndarray
    """(N,), 1 where all attributes are right."""
    features: np.ndarray
    """(N, F)"""
    alike: np.ndarray
    """(P, S, F)"""


class Examiner:
    """Examines pictures of the same samples from one sampler after another."""

    def __init__(self, samples: dict[Bucket, list[PlannedSample]]) -> None:
        self._samples = samples
        self._score = open_score(ScoreConfig(name="attributes"), CPU)
        self._space = open_features(ScoreConfig(name="judge_features"), CPU)

    def look(self, draw: Draw) -> dict[Bucket, Look]:
        return {bucket: self._look(draw, rows) for bucket, rows in self._samples.items()}

    def _look(self, draw: Draw, rows: list[PlannedSample]) -> Look:
        right, features = [], []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pictures = draw(part)
            features.append(self._space.features(pictures))
            right.append(self._score.judge(pictures, [s["prompt"] for s in part]))
        alike = [
            self._space.features(
                draw([{**row, "seed": (row["seed"] + i) % 2**63} for i in range(ALIKE_SEEDS)])
            )
            for row in rows[:ALIKE_PROMPTS]
        ]
        return Look(np.concatenate(right), np.concatenate(features), np.stack(alike))
