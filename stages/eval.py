"""Stage `eval`: teacher, student and tuned student draw the same held-out prompts from the same
seeds; every score judges every picture; the result is a report, a page, and the student's folder
with its model card.

A shard is one system's pictures of some prompts of one bucket, so a stopped evaluation goes on.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.lineage import ancestors
from pipeline.mapping import map_shards, worker_devices
from pipeline.model_card import licence_of, render_card
from pipeline.report_page import render_report
from pipeline.shards import ShardWriter, table_bytes, write_tar
from pipeline.stage import StageContext, StageResult
from pipeline.store import Artifact, ArtifactStore
from schemas.config import PipelineConfig, ScoreConfig
from schemas.records import ShardStats
from schemas.report import Report
from stages import eval_prompts
from stages.devices import pool_device
from stages.eval_report import check_gates, make_report
from stages.ladd.sampling import student_sigmas
from stages.painters import Painter, Sample, student_painter, teacher_painter
from stages.pairs import check_score
from stages.prompts import SAMPLE_SCHEMA
from stages.scores import FEATURES, open_features, open_score
from stages.scores.patches import patches_of
from stages.student import check_steps, open_student
from stages.synthesize import encode_image
from stages.teachers import open_teacher

_TIMING = "shards/timing"
_STAGES = {"student": "distill", "tuned": "dpo"}
_FOLDERS: dict[str, Literal["student", "tuned"]] = {"student": "student", "model": "tuned"}
"""The artifact's folders with students, and which of them lies there."""
_REPEATS = 3


@dataclass(frozen=True)
class System:
    """One way of making pictures."""

    kind: str
    """teacher, student or tuned."""
    steps: int
    name: str

    @property
    def title(self) -> str:
        model = {"teacher": "teacher", "student": "student", "tuned": "tuned student"}[self.kind]
        return f"{model}, {self.steps} step{'s'[: self.steps > 1]}"


def systems_of(config: PipelineConfig) -> list[System]:
    """The teacher at its own steps first: the others are measured against it."""
    steps = sorted(config.eval.student_steps, reverse=True)
    return [
        System("teacher", config.synthesize.steps, "teacher"),
        *(System("teacher", n, f"teacher_{n}") for n in steps),
        *(System("student", n, f"student_{n}") for n in steps),
        System("tuned", config.eval.tuned_steps, f"tuned_{config.eval.tuned_steps}"),
    ]


def check(config: PipelineConfig) -> None:
    """Raises ConfigError before anything starts: for missing prompts, for steps that the student
    does not take, and for a demand on what is not measured.
    """
    eval_prompts.check(config)
    for steps in config.eval.student_steps:
        check_steps("eval.student_steps", steps, config.distill.student_time.grid)
    check_steps("eval.tuned_steps", config.eval.tuned_steps, config.distill.student_time.grid)
    for score in config.eval.scores:
        check_score("eval.scores", score.name)
    check_score("eval.features", config.eval.features.name, FEATURES)
    check_gates(config, [system.name for system in systems_of(config)])


def run(context: StageContext) -> StageResult:
    config = context.config
    lineage = ancestors(context.inputs.values())
    samples = eval_prompts.chosen_samples(context)
    proof = eval_prompts.prove_held_out(samples, lineage)
    systems = systems_of(config)
    shards = _plan(samples, systems, config)
    build = partial(
        Judge,
        config,
        context.store,
        context.folder,
        {kind: context.inputs[stage] for kind, stage in _STAGES.items()},
        shards,
    )
    done = map_shards(context, sorted(shards), build, config.eval.pool)
    alone = config.eval.pool.model_copy(update={"workers": 1})
    done |= map_shards(context, [_TIMING], build, alone, unit="timings")
    report, pictures = make_report(context, lineage, systems, shards, done)
    files = {f: (s.sizes[f], digest) for s in done.values() for f, digest in s.files.items()}
    files |= _copy_students(context) | _write_pages(context, report, pictures)
    seconds = sum(stats.seconds for stats in done.values())
    return StageResult(
        files=files,
        counts={"prompts": len(samples), "pictures": sum(s.counts["ok"] for s in done.values())},
        metrics={
            f"{s.name}.{score}": interval.mean
            for s in report.systems
            for score, interval in s.scores.items()
        },
        details={
            "systems": {
                system.name: {
                    "title": system.title,
                    "shards": [
                        shard
                        for shard in sorted(shards)
                        if _system_of(shard) == system.name and not _is_alike(shard)
                    ],
                }
                for system in systems
            },
            "model": "model",
            "student": "student",
            "held_out_proof": proof,
            "failed_gates": [
                f"{gate.name} is {gate.value:.4g}, {gate.misses_by:.4g} away from {gate.demand}"
                for gate in report.gates
                if not gate.passed
            ],
        },
        device_hours=seconds / 3600 * worker_devices(config.eval.pool),
    )


def _write_pages(
    context: StageContext, report: Report, pictures: dict[tuple[str, str], bytes]
) -> dict[str, tuple[int, str]]:
    """report.json, report.html, and the model card in each student's folder."""
    teacher = context.config.teacher
    is_hub_id = teacher.model is not None and not Path(teacher.model).exists()
    pages = {
        "report.json": report.model_dump_json(indent=2),
        "report.html": render_report(report, pictures),
    }
    for folder, kind in _FOLDERS.items():
        pages[f"{folder}/README.md"] = render_card(
            report,
            licence_of(teacher),
            kind=kind,
            base_model=teacher.model if is_hub_id else None,
            use_t5=teacher.use_t5,
        )
    return {
        name: context.store.write(f"{context.folder}/{name}", text.encode())
        for name, text in pages.items()
    }


def _copy_students(context: StageContext) -> dict[str, tuple[int, str]]:
    """The students' folders, to lie beside their cards: an artifact is never changed."""
    store, files = context.store, {}
    for folder, kind in _FOLDERS.items():
        made = context.inputs[_STAGES[kind]]
        for entry in made.files("model/"):
            name = f"{folder}/{entry.path.removeprefix('model/')}"
            store.copy(made.name(entry.path), f"{context.folder}/{name}")
            files[name] = (entry.size, entry.sha256)
    return files


def _plan(
    samples: list[Sample], systems: list[System], config: PipelineConfig
) -> dict[str, list[Sample]]:
    """Samples of each shard: all prompts once, and some of them several times, for diversity."""
    wanted = config.eval
    shards = {}
    alike = [
        {**sample, "key": f"{sample['key']}-{i:02d}", "seed": (sample["seed"] + i) % 2**63}
        for sample in samples[: wanted.alike_prompts]
        for i in range(wanted.alike_seeds)
    ]
    for prefix, rows in (("", samples), ("alike-", alike)):
        buckets = defaultdict(list)
        for row in rows:
            buckets[row["bucket"]].append(row)
        size = wanted.prompts_per_shard * (wanted.alike_seeds if prefix else 1)
        for bucket, members in sorted(buckets.items()):
            for at in range(0, len(members), size):
                for system in systems:
                    name = f"shards/{system.name}/{prefix}{bucket}-{at // size:06d}"
                    shards[name] = members[at : at + size]
    return shards


def _system_of(shard: str) -> str:
    return shard.split("/")[1]


def _is_alike(shard: str) -> bool:
    return shard.split("/")[2].startswith("alike-")


class Judge:
    """Draws and judges whole shards; lives in a worker, with one net loaded at a time."""

    def __init__(
        self,
        config: PipelineConfig,
        store: ArtifactStore,
        folder: str,
        students: dict[str, Artifact],
        shards: dict[str, list[Sample]],
    ) -> None:
        self.config, self.store, self.folder = config, store, folder
        self.students, self.shards = students, shards
        self.device = pool_device(config.eval.pool)
        self.teacher = open_teacher(config.teacher)
        self.teacher.place(self.device)
        self.systems = {system.name: system for system in systems_of(config)}
        self.scores = {s.name: open_score(s, self.device) for s in config.eval.scores}
        self.space = open_features(config.eval.features, self.device)
        self._loaded: tuple[str, Any] = ("", None)

    def __call__(self, shard: str) -> ShardStats:
        if shard == _TIMING:
            return self._measure_times()
        samples, alike = self.shards[shard], _is_alike(shard)
        paint = self._painter(self.systems[_system_of(shard)])
        pictures = np.concatenate(list(self._draw(paint, samples)))
        writer = ShardWriter(self.store, self.folder, shard)
        _save(writer.file(".features.npy"), self.space.features(pictures))
        if not alike:
            prompts = [sample["prompt"] for sample in samples]
            judged = {name: score.judge(pictures, prompts) for name, score in self.scores.items()}
            rows = [
                {**sample, **{name: float(values[i]) for name, values in judged.items()}}
                for i, sample in enumerate(samples)
            ]
            writer.file(".parquet", table_bytes(rows, row_schema(self.config.eval.scores)))
            _save(writer.file(".patches.npy"), self.space.features(patches_of(pictures)))
            members = [
                (sample["key"], {"png": encode_image(picture, "png", 100)})
                for sample, picture in zip(samples, pictures, strict=True)
            ]
            write_tar(writer.file(".tar"), members)
        return writer.commit({"ok": len(samples)})

    def _measure_times(self) -> ShardStats:
        """Seconds a picture of each system, one after another on this worker: the median of some
        micro-batches of the first bucket.
        """
        size = self.config.eval.micro_batch
        first = next(rows for shard, rows in sorted(self.shards.items()) if not _is_alike(shard))
        samples = [first[i % len(first)] for i in range(size)]
        seconds = {}
        for system in self.systems.values():
            seconds[system.name] = self._seconds(system, samples) / size
        writer = ShardWriter(self.store, self.folder, _TIMING)
        return writer.commit({"ok": 0}, {"seconds_per_picture": seconds})

    def _seconds(self, system: System, samples: list[Sample]) -> float:
        paint = self._painter(system)
        times = []
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            self.teacher.decode_latents(paint(samples))
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def _draw(self, paint: Painter, samples: list[Sample]) -> Iterator[np.ndarray]:
        size = self.config.eval.micro_batch
        for at in range(0, len(samples), size):
            yield self.teacher.decode_latents(paint(samples[at : at + size]))

    def _painter(self, system: System) -> Painter:
        if self._loaded[0] != system.kind:
            self._loaded = ("", None)  # before the next is loaded: two may not fit
            self._loaded = (system.kind, self._load(system.kind))
        net = self._loaded[1]
        if system.kind == "teacher":
            scale = self.config.synthesize.guidance_scale
            return teacher_painter(self.teacher, net, self.device, system.steps, scale)
        backbone, grid = net
        sigmas = student_sigmas(grid, system.steps)
        return student_painter(self.teacher, backbone, self.device, sigmas)

    def _load(self, kind: str) -> Any:
        if kind == "teacher":
            return self.teacher.backbone()
        with self.students[kind].local_folder("model") as folder:
            backbone, grid = open_student(folder)
        return backbone.to(self.device), grid


def row_schema(scores: list[ScoreConfig]) -> pa.Schema:
    """Of the sidecars: the sample, and a column a score."""
    return pa.schema(
        [
            *SAMPLE_SCHEMA,
            *((name, pa.string()) for name in ("bucket", "category")),
            *((score.name, pa.float64()) for score in scores),
        ]
    )


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array.astype(np.float32), allow_pickle=False)
