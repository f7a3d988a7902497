"""Preference pairs of the tiny teacher: artifacts, stand-in scores, and files of pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.base.shards import read_tar
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from schemas.config import PipelineConfig, ScoreConfig
from schemas.report import ScoreCard
from stages import pairs, prompts
from stages.data.pair_files import parts_of
from stages.ladd.grid import StudentGrid
from stages.teachers import open_teacher
from stages.texts.choice import chosen_prompts
from tests.support.context import commit, make_context
from tests.support.tiny_sd3 import make_tiny_config

GRID = [1.0, 0.75, 0.5, 0.25]
EVEN = StudentGrid(tuple(GRID), terminal=GRID[-1])


class ChannelMean:
    """Scores a picture by the mean of one of its colours."""

    def __init__(self, channel: int, *, higher_is_better: bool = True) -> None:
        self.channel = channel
        self.card = ScoreCard(
            title="mean of a colour",
            explanation="The mean of one colour.",
            low=0,
            high=255,
            higher_is_better=higher_is_better,
            licence="none",
            weights="none",
        )

    def judge(self, pictures_BHW3, prompts):
        assert pictures_BHW3.dtype == np.uint8 and len(pictures_BHW3) == len(prompts)
        return pictures_BHW3[..., self.channel].mean((1, 2)).astype(np.float64)


def open_stand_in(config: ScoreConfig, device: torch.device) -> ChannelMean:
    return ChannelMean({"layout": 0, "attributes": 1}[config.name])


def put_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """Scores of the test's own, and no question to Ray."""
    patch.setattr(pairs, "open_score", open_stand_in)
    patch.setattr(pairs, "worker_devices", lambda pool: 1.0)


def pairs_config(model: Path, store: Path, **sections) -> PipelineConfig:
    wanted = {
        "prompts": 14,
        "pictures_per_prompt": 3,
        "prompts_per_shard": 4,
        "micro_batch": 5,
        "held_out_fraction": 0.3,
        "student_steps": 2,
        "reward": {"name": "layout"},
    }
    sections["pairs"] = wanted | sections.get("pairs", {})
    return make_tiny_config(model, store, **sections)


def context_of(stage: str, config: PipelineConfig, **inputs: Artifact) -> StageContext:
    store = ArtifactStore(config.store)
    return make_context(stage, config, store, inputs.values())


def made_prompts(config: PipelineConfig) -> Artifact:
    context = context_of("prompts", config)
    return commit(context, prompts.run(context))


def made_student(config: PipelineConfig) -> Artifact:
    """The teacher's own weights, somewhat moved, as a `distill` artifact."""
    context = context_of("distill", config)
    folder = Path(context.store.path(context.folder, "model"))
    generator = torch.Generator().manual_seed(3)

    def move(backbone):
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    open_teacher(config.teacher).save_student(folder, move, EVEN)
    files = {
        f"model/{path.relative_to(folder).as_posix()}": context.store.write(
            f"{context.folder}/model/{path.relative_to(folder).as_posix()}", path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return commit(context, StageResult(files, details={"model": "model", "grid": GRID}))


def made_pairs(config: PipelineConfig, planned: Artifact, student: Artifact | None = None):
    """Every shard made by one worker in this process, then the stage's own result."""
    context = context_of("pairs", config, prompts=planned)
    if config.pairs.url is None:
        rows = chosen_prompts(planned, config.pairs.prompts, "pairs")
        plan, work = pairs._plan(rows, config.pairs.prompts_per_shard), pairs.PairSampler
    else:
        parts = parts_of(config.pairs.url, config.pairs.prompts_per_shard)
        plan, work = {pairs._shard(i): p for i, p in enumerate(parts)}, pairs.PairReader
    worker = work(config, context.store, context.folder, plan, student)
    for shard in sorted(plan, reverse=True):
        worker(shard)
    return commit(context, pairs.run(context))


def rows_of(artifact: Artifact) -> list[dict]:
    folder = Path(artifact.store.path(artifact.folder))
    return [
        row
        for shard in artifact.manifest.details["shards"]
        for row in pq.read_table(folder / f"{shard}.parquet").to_pylist()
    ]


def members_of(artifact: Artifact) -> dict[str, dict[str, bytes]]:
    folder = Path(artifact.store.path(artifact.folder))
    return {
        key: members
        for shard in artifact.manifest.details["shards"]
        for key, members in read_tar(folder / f"{shard}.tar", shard)
    }


def png(color: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png((250, 10, 10)), png((10, 10, 250))


def write_pick_a_pic(path: Path, rows: list[tuple], *, row_group_size: int = 2) -> str:
    names = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(
        pa.table(columns | {"uid": range(len(rows))}), path, row_group_size=row_group_size
    )
    return str(path)
