"""The worker of `eval`: generates a shard's pictures with its system and measures them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.base.shards import ShardWriter
from pipeline.base.store import Artifact, ArtifactStore
from schemas.config import PipelineConfig
from schemas.records import ShardStats
from stages.judging.drawn import put_features, put_pictures
from stages.judging.meter import Meter
from stages.judging.systems import FLOOR, TIMING, PlannedShard, System, floor_of, systems_of
from stages.ladd.grid import student_sigmas
from stages.pictures.samplers import PlannedSample, Sampler, student_sampler, teacher_sampler
from stages.pictures.student import student_of
from stages.teachers import open_teacher_in

_REPEATS = 3
"""Timed micro-batches of each system, after one warm-up that is not counted."""


class Judge:
    """Generates and judges whole shards; lives in a worker, with one backbone loaded at a time.

    `students` holds the artifacts of the student and the tuned student, by kind of system.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: ArtifactStore,
        folder: str,
        students: dict[str, Artifact],
        shards: dict[str, PlannedShard],
    ) -> None:
        self.config, self.store, self.folder = config, store, folder
        self.students, self.shards = students, shards
        self.teacher = open_teacher_in(config.eval.pool, config.teacher)
        self.device = self.teacher.device
        self.systems = {s.name: s for s in (*systems_of(config), *floor_of(config))}
        self.meter = Meter(config.eval, self.device)
        self._loaded: tuple[str, Any] = ("", None)

    def __call__(self, shard: str) -> ShardStats:
        if shard == TIMING:
            return self._measure_times()
        planned = self.shards[shard]
        writer = ShardWriter(self.store, self.folder, shard)  # whose clock runs from here on
        draw = self._sampler(self.systems[planned.system])
        pictures = np.concatenate(list(self._draw(draw, planned.samples)))
        if planned.alike:
            put_features(writer, self.meter.features(pictures))
        else:
            measured = self.meter.measure(pictures, [s["prompt"] for s in planned.samples])
            put_pictures(writer, planned.samples, pictures, measured, self.config.eval)
        return writer.commit({"ok": len(planned.samples)})

    def _measure_times(self) -> ShardStats:
        """Measure seconds per picture of each system, one after another on this worker: the median
        over micro-batches of the first bucket.
        """
        writer = ShardWriter(self.store, self.folder, TIMING)
        size = self.config.eval.micro_batch
        _, first = min((name, s) for name, s in self.shards.items() if not s.alike)
        samples = [first.samples[i % len(first.samples)] for i in range(size)]
        seconds = {
            name: self._seconds(system, samples) / size
            for name, system in self.systems.items()
            if name != FLOOR
        }
        return writer.commit({"ok": 0}, {"seconds_per_picture": seconds})

    def _seconds(self, system: System, samples: list[PlannedSample]) -> float:
        draw = self._sampler(system)
        times = []
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            self.teacher.decode_latents(draw(samples))
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def _draw(self, draw: Sampler, samples: list[PlannedSample]) -> Iterator[np.ndarray]:
        size = self.config.eval.micro_batch
        for start in range(0, len(samples), size):
            yield self.teacher.decode_latents(draw(samples[start : start + size]))

    def _sampler(self, system: System) -> Sampler:
        if self._loaded[0] != system.kind:
            self._loaded = ("", None)  # free it before loading the next: two may not fit
            self._loaded = (system.kind, self._load(system.kind))
        if system.kind == "teacher":
            how = self.config.synthesize.at(steps=system.steps)
            return teacher_sampler(self.teacher, self._loaded[1], self.device, how)
        backbone, grid = self._loaded[1]
        sigmas = student_sigmas(grid, system.steps)
        return student_sampler(self.teacher, backbone, self.device, sigmas)

    def _load(self, kind: str) -> Any:
        if kind == "teacher":
            return self.teacher.backbone()
        return student_of(self.students[kind], self.device, bfloat16=True)
