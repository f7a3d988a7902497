"""The sweep that finds the best scale of tuned adapters: the student samples with them at each
scale, and a score that did not make the pairs judges the pictures.

The student also samples without adapters, to show the gain. One scale is one shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.parquet import table_bytes
from pipeline.base.shards import ShardWriter
from pipeline.base.stage import StageContext, device_hours
from pipeline.base.store import Artifact, ArtifactStore
from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError
from schemas.records import ShardStats
from stages.pictures.samplers import PlannedSample, Sampler, sample_batches
from stages.pictures.student import pairs_sampler, pairs_student
from stages.scores import open_score
from stages.scores.protocol import Score
from stages.teachers import open_teacher_in
from stages.teachers.protocol import Adapters
from stages.texts.choice import chosen_prompts
from stages.texts.identity import seed_of
from stages.training.trace import LORA


@dataclass(frozen=True)
class Sweep:
    """Result of the sweep over scales."""

    chooser: str
    rows: list[dict[str, float]]
    """Each scale with the mean of each score; scale 0 is first."""
    scale: float
    """The chosen scale."""
    gain: float
    """Improvement over no adapters, by the chooser; negative if the result is worse."""
    stats: list[ShardStats]
    device_hours: float


def try_scales(context: StageContext) -> Sweep:
    """Sample and judge at each configured scale and at 0, with the adapters in `context.folder`."""
    config, student = context.config, context.inputs["distill"]
    scales = sorted({0.0, *config.dpo.scales})
    shards = {f"shards/scales/{i:03d}": scale for i, scale in enumerate(scales)}
    samples = chooser_samples(context)
    build = partial(ScaleJudge, config, context.store, context.folder, student, shards, samples)
    judged = map_shards(context, sorted(shards), build, config.pairs.pool, unit="scales")
    stats = [judged[shard] for shard in sorted(shards)]
    chooser, rows = config.dpo.chooser.name, [one.details["scores"] for one in stats]
    sign = stats[0].details["signs"][chooser]
    scale = chosen_scale(rows, config.dpo.scales, chooser, sign)
    by_scale = {row["scale"]: row[chooser] for row in rows}
    return Sweep(
        chooser=chooser,
        rows=rows,
        scale=scale,
        gain=sign * (by_scale[scale] - by_scale[0.0]),
        stats=stats,
        device_hours=device_hours(stats, worker_devices(config.pairs.pool)),
    )


def chosen_scale(
    rows: list[dict[str, float]], scales: list[float], chooser: str, sign: int
) -> float:
    """The configured scale with the best chooser score; ties go to the smallest."""
    return min((-sign * row[chooser], row["scale"]) for row in rows if row["scale"] in scales)[1]


def chooser_samples(context: StageContext) -> list[PlannedSample]:
    """The samples that every scale generates: training prompts that made no pair, if there are
    enough, each with its seed and bucket.
    """
    config, pairs = context.config.dpo, context.inputs["pairs"]
    used: set[str] = set()
    for entry in pairs.files("shards/", ".parquet"):
        with pairs.checked(entry) as path:
            used |= set(pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist())
    rows = chosen_prompts(
        context.inputs["prompts"], config.chooser_prompts, "chooser", frozenset(used)
    )
    return [
        {
            **row,
            "seed": seed_of(config.seed, row["prompt"], 0, purpose="chooser"),
            "bucket": str(Bucket(row["width"], row["height"])),
        }
        for row in sorted(rows, key=lambda row: (row["width"], row["height"], row["prompt_id"]))
    ]


class ScaleJudge:
    """Samples with the student and the adapters at one scale and judges the pictures; lives in a
    worker. One shard is one scale.
    """

    def __init__(
        self,
        config: PipelineConfig,
        store: ArtifactStore,
        folder: str,
        student: Artifact,
        scales: dict[str, float],
        samples: list[PlannedSample],
    ) -> None:
        self.config, self.store, self.folder = config, store, folder
        self.student, self.scales, self.samples = student, scales, samples
        self.teacher = open_teacher_in(config.pairs.pool, config.teacher)
        self.device = self.teacher.device

    def __call__(self, shard: str) -> ShardStats:
        writer = ShardWriter(self.store, self.folder, shard)  # whose clock runs from here on
        draw, adapters = self._student
        adapters.scale(self.scales[shard])
        values: dict[str, list[float]] = {name: [] for name in self._scores}
        for batch in sample_batches(self.samples, self.config.pairs.micro_batch):
            pictures = self.teacher.decode_latents(draw(batch))
            for name, score in self._scores.items():
                values[name] += score.judge(pictures, [s["prompt"] for s in batch]).tolist()
        texts = dict.fromkeys(("prompt_id", "prompt", "bucket"), "string")
        columns = {**texts, "seed": "int64", **dict.fromkeys(values, "float64")}
        rows = [
            {**sample, **{name: values[name][i] for name in values}}
            for i, sample in enumerate(self.samples)
        ]
        writer.file(".parquet", table_bytes(rows, columns))
        means = {name: float(np.mean(column)) for name, column in values.items()}
        signs = {n: 1 if s.card.higher_is_better else -1 for n, s in self._scores.items()}
        details = {"scores": {"scale": self.scales[shard], **means}, "signs": signs}
        return writer.commit({"ok": len(rows)}, details)

    @cached_property
    def _scores(self) -> dict[str, Score]:
        """The chooser, and the reward that made the pairs, if any."""
        wanted = [self.config.dpo.chooser]
        if self.config.pairs.url is None:
            wanted.append(self.config.pairs.reward)
        return {score.name: open_score(score, self.device) for score in wanted}

    @cached_property
    def _student(self) -> tuple[Sampler, Adapters]:
        backbone, grid = pairs_student(self.student, self.config, self.device)
        with local_lora(self.store, self.folder) as folder:
            adapters = self.teacher.load_adapters(backbone, folder)
        return pairs_sampler(self.teacher, backbone, grid, self.config, self.device), adapters


@contextlib.contextmanager
def local_lora(store: ArtifactStore, folder: str) -> Iterator[Path]:
    """Provide a local folder with the adapters from the artifact's folder."""
    names = [n for n in store.list(f"{folder}/{LORA}") if n.endswith(".safetensors")]
    if len(names) != 1:
        raise ArtifactError(
            f"{store.url.rstrip('/')}/{folder}/{LORA} holds {len(names)} files of adapters instead "
            "of one; run `ladd-pipeline run --force dpo` to make them again"
        )
    with store.local(f"{folder}/{LORA}/{names[0]}") as path:
        yield path.parent
