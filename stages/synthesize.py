"""Stage `synthesize`: the teacher, with guidance, makes the pictures that the student learns from.

One planned sample list becomes one WebDataset shard with a Parquet sidecar. The sidecar records
pictures that are flat or not finite; none is dropped silently.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.base.failures import failed_kinds
from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.parquet import table_bytes
from pipeline.base.shards import ShardWriter, TarSample, write_tar
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact
from pipeline.base.work import Above, Phase, Work, pieces_of
from schemas.bucket import Bucket
from schemas.config import PipelineConfig, SynthesizeConfig
from schemas.errors import StageFailed
from schemas.records import ShardStats
from stages.estimates.consumption import never_drawn
from stages.estimates.pictures import (
    MEMBERS_BYTES,
    drawn,
    file_bytes,
    largest,
    latent_bytes,
    writing_seconds,
)
from stages.pictures.files import encode_image
from stages.teachers import check_teacher, model_costs, open_teacher_in, teacher_models
from stages.teachers.costs import ModelCosts
from stages.teachers.hub_models import HubModel
from stages.texts.identity import SAMPLE_COLUMNS
from stages.texts.planned import chosen_shards

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Made = tuple[str, str | None, dict[str, bytes]]
"""What came of a sample: status, reason and tar members."""
SIDECAR_COLUMNS = {
    **SAMPLE_COLUMNS,
    "bucket": "string",
    "status": "string",
    "reason": "string",
    "sha256": "string",
}


def check(config: PipelineConfig) -> None:
    """Raise ConfigError unless the teacher's folder is whole."""
    check_teacher(config.teacher)


def models(config: PipelineConfig) -> list[HubModel]:
    return teacher_models(config.teacher)


def estimate(config: PipelineConfig) -> str:
    passes = config.synthesize.passes
    return f"{config.pictures_text} pictures, {passes} teacher passes each"


def work(config: PipelineConfig, above: Above) -> Work | None:
    """Workers of a pool sample the planned pictures and write them as shards."""
    wanted, costs = config.synthesize, model_costs(config.teacher)
    planned = above.get("prompts", {}).get("samples")
    if costs is None or planned is None:
        return None
    pictures = planned if wanted.count is None else min(planned, int(wanted.count))
    has_picture, has_latents = wanted.latents != "only", wanted.latents != "none"
    each = MEMBERS_BYTES
    each += file_bytes(config, wanted.image_format) if has_picture else 0
    each += latent_bytes(config, costs) if has_latents else 0
    written = writing_seconds(config, pictures, wanted.image_format) if has_picture else 0.0
    size = config.prompts.samples_per_shard
    parts = drawn(config, costs, pictures, wanted.passes, wanted.micro_batch)
    if not has_picture and wanted.flat_below == 0:
        parts = tuple(part for part in parts if part.kind != "pixels")
    drawing = Phase(
        "pictures",
        parts,
        core_seconds=written,
        is_overlapped=True,
        by=wanted.pool,
        pieces=pieces_of(pictures, size, len(config.prompts.buckets)),
    )
    return Work(
        samples=pictures,
        unit="pictures",
        phases=(drawing,),
        counts={"ok": pictures},
        store_bytes=pictures * each,
        scratch_bytes=2 * min(size, pictures) * each,
        device_bytes=_device_bytes(config, costs),
        model_bytes=costs.folder_bytes(),
        remarks=never_drawn(config, pictures),
    )


def _device_bytes(config: PipelineConfig, costs: ModelCosts) -> int:
    wanted, text = config.synthesize, costs.text_bytes()
    everything = costs.sampling_bytes(largest(config), wanted.micro_batch)
    return max(everything - text, text) if wanted.offload_text_encoders else everything


def run(context: StageContext) -> StageResult:
    planned, wanted = context.inputs["prompts"], context.config.synthesize
    sizes = chosen_shards(planned, wanted.count)
    shards, pool = list(sizes), wanted.pool
    build = partial(Synthesizer, context.config, planned, context.folder, sizes)
    done = map_shards(context, shards, build, pool)
    counts: Counter[str] = Counter()
    for name in shards:
        counts.update(done[name].counts)
    if not counts["ok"]:
        raise StageFailed(
            f"synthesize: no picture was usable ({dict(counts)}); look at the sidecars in "
            f"{context.folder}/shards"
        )
    seconds = sum(stats.seconds for stats in done.values())
    return StageResult.of_shards(
        [done[name] for name in shards],
        worker_devices(pool),
        counts=dict(counts),
        metrics={"pictures_per_worker_second": sum(counts.values()) / seconds},
        details={"shards": shards, "bucket_ok": _ok_by_bucket(done)},
    )


def _ok_by_bucket(done: dict[str, ShardStats]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, stats in done.items():
        counts[name.split("/")[1]] += stats.counts["ok"]
    return dict(counts)


class Synthesizer:
    """Makes whole shards, in a worker that has the teacher loaded."""

    def __init__(
        self,
        config: PipelineConfig,
        planned: Artifact,
        folder: str,
        sizes: Mapping[str, int | None] | None = None,
    ) -> None:
        from stages.ladd.parallelize import compile_blocks
        from stages.pictures.prompts_ahead import PromptsAhead
        from stages.pictures.samplers import teacher_sampler

        self.config: SynthesizeConfig = config.synthesize
        self.planned, self.folder, self.sizes = planned, folder, sizes or {}
        self.teacher = open_teacher_in(self.config.pool, config.teacher)
        backbone = self.teacher.backbone()
        if self.config.compile_blocks:
            compile_blocks(backbone)
        self.ahead = None
        if self.config.offload_text_encoders:
            self.ahead = PromptsAhead(self.teacher, backbone)
        self.draw = teacher_sampler(
            self.teacher, backbone, self.teacher.device, self.config, self.ahead
        )

    def __call__(self, shard: str) -> ShardStats:
        import pyarrow.parquet as pq

        with self.planned.checked(self.planned.entry(f"{shard}.parquet")) as path:
            samples = pq.read_table(path).to_pylist()[: self.sizes.get(shard)]
        writer = ShardWriter(self.planned.store, self.folder, shard)
        members: list[TarSample] = []
        rows, counts = [], Counter(ok=0, filtered=0, failed=0)
        for sample, (status, reason, contents) in zip(samples, self._made(samples), strict=True):
            counts[status] += 1
            digest = None
            if status == "ok":
                members.append((sample["key"], contents))
                digest = hashlib.sha256(
                    b"".join(contents[name] for name in sorted(contents))
                ).hexdigest()
            bucket = str(Bucket(sample["width"], sample["height"]))
            row = {"bucket": bucket, "status": status, "reason": reason, "sha256": digest}
            rows.append(sample | row)
        write_tar(writer.file(".tar"), members)
        writer.file(".parquet", table_bytes(rows, SIDECAR_COLUMNS))
        return writer.commit(dict(counts), {"failures": failed_kinds(rows)})

    def _made(self, samples: list[dict[str, Any]]) -> Iterator[Made]:
        """What came of each sample; all are of one bucket.

        While the device draws a batch, a thread encodes the pictures of the one before.
        """
        size = self.config.micro_batch
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        if self.ahead is not None:
            self.ahead.prepare([sample["prompt"] for sample in batch] for batch in batches)
        with ThreadPoolExecutor(1) as thread:
            before: Future[list[Made]] | None = None
            for batch in batches:
                drawn = self._drawn(batch)
                if before is not None:
                    yield from before.result()
                before = thread.submit(self._written, batch, *drawn)
            if before is not None:
                yield from before.result()

    def _drawn(self, batch: list[dict[str, Any]]) -> tuple[Tensor, np.ndarray | None]:
        """Latents (B, C, H, W) float32, and the pictures (B, H, W, 3) uint8 if they are looked at
        or stored. Both are in host memory: a copy from the thread would wait for the next batch.
        """
        latents, pictures = self.draw(batch), None
        if self.config.latents != "only" or self.config.flat_below > 0:
            pictures = self.teacher.decode_latents(latents)
        return latents.cpu(), pictures

    def _written(
        self, batch: list[dict[str, Any]], latents: Tensor, pictures: np.ndarray | None
    ) -> list[Made]:
        stored = latents if self.config.latents == "none" else latents.half()
        finite = stored.isfinite().flatten(1).all(1).tolist()
        made: list[Made] = []
        for i, sample in enumerate(batch):
            picture = None if pictures is None else pictures[i]
            if not finite[i]:
                made.append(("failed", "not finite", {}))
            elif picture is not None and picture.std() < self.config.flat_below:
                made.append(("filtered", "flat", {}))
            else:
                made.append(("ok", None, self._members(sample, picture, latents[i])))
        return made

    def _members(
        self, sample: dict[str, Any], picture: np.ndarray | None, latents: Tensor
    ) -> dict[str, bytes]:
        import numpy as np

        from stages.pictures.samplers import guidance_scale_of

        config = self.config
        scale = guidance_scale_of(sample, config)
        record = {**sample, "steps": config.steps, "guidance_scale": scale}
        members = {
            "txt": sample["prompt"].encode(),
            "json": json.dumps(record, sort_keys=True).encode(),
        }
        if config.latents != "only" and picture is not None:
            members[config.image_format] = encode_image(
                picture, config.image_format, config.quality
            )
        if config.latents != "none":
            buffer = io.BytesIO()
            np.save(buffer, latents.half().numpy(), allow_pickle=False)
            members["latent.npy"] = buffer.getvalue()
        return members
