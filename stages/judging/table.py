"""The table of `score` and `sweep --score`: teacher and students on the same held-out prompts, with
every score and in every feature space that the configuration names. A small evaluation of which
nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from schemas.config import PipelineConfig
from schemas.report import Interval, ScoreCard, SystemResult
from stages.judging.distances import distances_of, too_few
from stages.judging.drawn import Drawn, drawn_of
from stages.judging.measures import measures_of
from stages.judging.meter import Measured, Meter
from stages.judging.summary import result_of
from stages.judging.systems import System, alike_samples, with_other_seeds
from stages.ladd.grid import step_counts, steps_title, student_sigmas
from stages.pictures.samplers import (
    PlannedSample,
    Sampler,
    sample_batches,
    student_sampler,
    teacher_sampler,
)
from stages.pictures.student import open_student, placed_to_sample
from stages.scores import card_of
from stages.teachers import open_teacher


@dataclass(frozen=True)
class Table:
    """What teacher and students are worth."""

    cards: dict[str, ScoreCard]
    """By score."""
    results: list[SystemResult]
    """First the teacher, the most steps first. Seconds per picture are rough: nothing is warmed
    up.
    """
    floor: dict[str, Interval]
    """Empty without `eval.floor`."""
    too_few: dict[str, str]
    """Why a distance has no figure."""


@torch.no_grad()
def table_of(
    config: PipelineConfig,
    students: dict[str, Path],
    samples: list[PlannedSample],
    report: Callable[[str], None],
) -> Table:
    """Judge the teacher at its own and at the students' steps, and the students at all steps of
    their grids, each on `samples`; on a GPU if there is one.

    `students` maps titles to diffusers folders. Raises ArtifactError if a folder is no student's,
    and ConfigError for a model that is missing.
    """
    alike = _by_size(alike_samples(samples, config.eval))
    samples = _by_size(samples)
    drawer, measures = _Drawer(config), measures_of(config.eval)
    reference: Drawn | None = None
    results = []
    for system, title, sampler in drawer.samplers(students):
        drawn, seconds = drawer.draw(sampler, samples, alike)
        reference = reference or drawn
        result = result_of(config, system, drawn, reference, seconds)
        results.append(result.model_copy(update={"title": title}))
        report(f"judged: {title}")
    assert reference is not None
    floor = {}
    if config.eval.floor:
        sampler = drawer.teacher_at(config.synthesize.steps)
        again, _ = drawer.draw(sampler, with_other_seeds(samples, config))
        floor = distances_of(again, reference, measures)
        report("judged: the teacher from other seeds")
    teachers = [result for result in results if result.kind == "teacher"]
    return Table(
        cards={score.name: card_of(score) for score in config.eval.scores},
        results=sorted(teachers, key=lambda r: -r.steps)
        + [result for result in results if result.kind != "teacher"],
        floor=floor,
        too_few=too_few(reference, measures),
    )


class _Drawer:
    """Holds the teacher and the judges, and samples with one model after another."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = open_teacher(config.teacher)
        self.teacher.place(self.device)
        self.backbone = self.teacher.backbone()
        self.meter = Meter(config.eval, self.device)

    def samplers(self, students: dict[str, Path]) -> Iterator[tuple[System, str, Sampler]]:
        """Yield systems with title and sampler, first the teacher at its own steps. One student is
        loaded at a time.
        """
        own = self.config.synthesize.steps
        yield System("teacher", own, "teacher"), _at("teacher", own), self.teacher_at(own)
        beside = set(step_counts(self.config.distill.student_time.grid)) if not students else set()
        for title, folder in students.items():
            backbone, grid = open_student(folder)
            backbone = placed_to_sample(backbone, self.device)
            for n in step_counts(grid):
                sigmas = student_sigmas(grid, n)
                sampler = student_sampler(self.teacher, backbone, self.device, sigmas)
                yield System("student", n, f"{title}_{n}"), _at(title, n), sampler
            beside |= set(step_counts(grid))
        for n in beside - {own}:
            yield System("teacher", n, f"teacher_{n}"), _at("teacher", n), self.teacher_at(n)

    def teacher_at(self, steps: int) -> Sampler:
        how = self.config.synthesize.at(steps=steps)
        return teacher_sampler(self.teacher, self.backbone, self.device, how)

    def draw(
        self, sampler: Sampler, samples: list[PlannedSample], alike: Sequence[PlannedSample] = ()
    ) -> tuple[Drawn, float]:
        """Sample and measure; returns the numbers, and seconds per picture. `alike` are the samples
        for the diversity.
        """
        size = self.config.eval.micro_batch
        parts: list[Measured] = []
        seconds = 0.0
        for batch in sample_batches(samples, size):
            started = time.perf_counter()
            pictures = self.teacher.decode_latents(sampler(batch))
            seconds += time.perf_counter() - started
            parts.append(self.meter.measure(pictures, [sample["prompt"] for sample in batch]))
        features = [
            self.meter.features(self.teacher.decode_latents(sampler(batch)))
            for batch in sample_batches(alike, size)
        ]
        return drawn_of(samples, parts, features, self.config.eval), seconds / len(samples)


def _by_size(samples: list[PlannedSample]) -> list[PlannedSample]:
    return sorted(samples, key=lambda sample: (sample["width"], sample["height"]))


def _at(title: str, steps: int) -> str:
    return f"{title}, {steps_title(steps)}"
