"""Sample grids during training: teacher and student side by side, same prompts, same seeds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.base.stage import StageContext
from stages.ladd.backbone import Backbone
from stages.ladd.ema import ExponentialAverage
from stages.ladd.grid import step_counts, steps_title, student_sigmas
from stages.ladd.health import Sign, diversity_signs
from stages.pictures.contact_sheet import draw_grid
from stages.pictures.samplers import (
    PlannedSample,
    remembering,
    student_sampler,
    teacher_sampler,
)
from stages.teachers.protocol import Teacher

_ALIKE = 4
"""The number of seeds of one prompt whose latents are compared to measure diversity."""


class SampleGrids:
    """Samples held-out prompts with the frozen teacher and with the student's averaged weights."""

    def __init__(
        self,
        context: StageContext,
        teacher: Teacher,
        frozen: Backbone,
        student: Backbone,
        average: ExponentialAverage,
    ) -> None:
        self.context, self.config = context, context.config
        self.teacher, self.frozen, self.student = teacher, frozen, student
        self.average = average
        self._encode = remembering(teacher.encode_prompts)
        self.grid = teacher.student_grid(self.config.distill.student_time)
        self._teacher_pictures: dict[str, np.ndarray] = {}
        self._teacher_distance: float | None = None
        prompts = context.inputs["prompts"]
        with prompts.checked(prompts.entry("held_out.parquet")) as path:
            rows = pq.read_table(path).to_pylist()
        self.samples = _one_of_each_bucket(rows, self.config.distill.sample_prompts)

    def put(self, step: int, *, folder: str | None) -> list[Sign]:
        """Draw the grid of update `step`; returns a sign if the student's diversity is low.

        Every rank calls this, because sharded weights need all ranks. The rank with a `folder` of
        the store writes `samples/step-NNNNNN.png` into it.
        """
        if not self.samples:
            return []
        with self.average.shown_by(self.student):
            png, signs = self._draw()
        if self.config.encode.embeddings == "stored":
            self.teacher.release()  # training needs no text encoders or autoencoder
        if folder is not None:
            self.context.store.write(f"{folder}/samples/step-{step:06d}.png", png)
        return signs

    def _draw(self) -> tuple[bytes, list[Sign]]:
        steps, rows = step_counts(self.grid), []
        for sample in self.samples:
            key = sample["key"]
            if key not in self._teacher_pictures:
                self._teacher_pictures[key] = self._decoded(self._from_teacher([sample]))
            pictures = [self._decoded(self._from_student([sample], n)) for n in steps]
            rows.append((sample["prompt"], [self._teacher_pictures[key], *pictures]))
        columns = [
            f"teacher, {self.config.synthesize.steps} steps",
            *(f"student, {steps_title(n)}" for n in steps),
        ]
        return draw_grid(columns, rows), self._diversity()

    def _diversity(self) -> list[Sign]:
        """Compare the diversity of the first prompt's pictures, student against teacher."""
        alike = [{**self.samples[0], "seed": self.samples[0]["seed"] + i} for i in range(_ALIKE)]
        if self._teacher_distance is None:
            self._teacher_distance = _distance(self._from_teacher(alike))
        student = _distance(self._from_student(alike, len(self.grid)))
        return diversity_signs(student, self._teacher_distance)

    def _from_teacher(self, samples: list[PlannedSample]) -> torch.Tensor:
        how, device = self.config.synthesize, self.teacher.device
        draw = teacher_sampler(self.teacher, self.frozen, device, how, self._encode)
        return draw(samples)

    def _from_student(self, samples: list[PlannedSample], steps: int) -> torch.Tensor:
        draw = student_sampler(
            self.teacher,
            self.student,
            self.teacher.device,
            student_sigmas(self.grid, steps),
            bfloat16=self.config.distill.precision == "bfloat16",
            encode=self._encode,
        )
        return draw(samples)

    def _decoded(self, latents_1CHW: torch.Tensor) -> np.ndarray:
        picture: np.ndarray = self.teacher.decode_latents(latents_1CHW)[0]
        return picture


def _distance(latents_BCHW: torch.Tensor) -> float:
    """Mean pairwise distance between the latents of a batch."""
    return torch.pdist(latents_BCHW.flatten(1).float().cpu()).mean().item()


def _one_of_each_bucket(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Choose the first `count` samples, taking buckets in turn; returns them widest first."""
    seen: Counter[tuple[int, int]] = Counter()
    ranked: list[tuple[int, int, dict[str, Any]]] = []
    for row in rows:
        size = (row["width"], row["height"])
        ranked.append((seen[size], len(ranked), row))
        seen[size] += 1
    chosen = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])[:count]]
    return sorted(chosen, key=lambda row: (-row["width"] / row["height"], row["key"]))
