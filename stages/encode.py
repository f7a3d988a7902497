"""Stage `encode`: encodes pictures to latents, by bucket in files made for training, and each
prompt to embeddings once.

Reads our shards or any WebDataset with image and text members (img2dataset's layout). Latent files
are plain `.npy` for memory-mapping, one bucket per file; the manifest's `details` is their index.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.base.addresses import copied, expand, shown
from pipeline.base.failures import all_kinds, commonest, failed_kinds, recorded
from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.parquet import schema_of, table_bytes
from pipeline.base.scratch import scratch_prefix
from pipeline.base.shards import ShardWriter
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.base.tars import Sample, read_samples
from pipeline.base.threads import in_order
from pipeline.base.work import Above, Part, Phase, Work, pieces_of
from schemas.bucket import Bucket
from schemas.config import EncodeConfig, PipelineConfig
from schemas.errors import StageFailed, UnusableSample
from schemas.records import ShardStats
from stages.data.external_shards import shard_names
from stages.data.token_rows import TokenLayout, to_8_bits
from stages.estimates.pictures import (
    embedding_bytes,
    encoded,
    file_bytes,
    largest,
    latent_bytes,
)
from stages.teachers import check_teacher, model_costs, open_teacher_in, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.identity import HELD_OUT, prompt_id, split_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow.parquet as pq

    from stages.data.sample_members import Taken
    from stages.ladd.backbone import Conditioning

EXTERNAL = "encode.external"
PROMPTS_PER_SHARD, BYTES_PER_SHARD = 4096, 1 << 30
"""The most that a shard of embeddings holds: a worker has it on its disk until it is stored."""
_SECONDS = 0.001
"""That a core takes for a sample of a shard, and ..."""
_BYTES_A_SECOND = 3e8
"""... bytes that it reads, hashes and writes a second."""
_BYTES = 100.0
"""Of a sample's row in the index."""
_AT_ONCE = 16
"""Files of prompts that are fetched at the same time."""
_DIGITS = 2
"""Leading hexadecimal digits of an id that select its part of the prompts: 256 parts."""
ROW_COLUMNS = {"key": "string", "prompt_id": "string"}
PROMPT_COLUMNS = {"prompt_id": "string", "prompt": "string"}
SIDECAR_COLUMNS = {"key": "string", "bucket": "string", "status": "string", "reason": "string"}


def check(config: PipelineConfig) -> None:
    """Raise ConfigError if an address in `encode.external` names no file or cannot be reached, or
    if the teacher's folder is not whole.
    """
    check_teacher(config.teacher)
    if config.encode.external is not None:
        expand(config.encode.external, EXTERNAL, (".tar",))


def models(config: PipelineConfig) -> list[HubModel]:
    return teacher_models(config.teacher)


def estimate(config: PipelineConfig) -> str:
    if config.encode.external is not None:
        return "all pictures of the external shards"
    return f"{config.pictures_text} pictures"


def work(config: PipelineConfig, above: Above) -> Work | None:
    """Workers of a pool make latents of pictures that have none, then embed each prompt once. None
    for external data, whose number is known when they are read.
    """
    wanted, costs = config.encode, model_costs(config.teacher)
    pictures = above.get("synthesize", {}).get("ok")
    if costs is None or pictures is None or wanted.external is not None:
        return None
    has_latents = wanted.use_teacher_latents and config.synthesize.latents != "none"
    prompts = -(-pictures // config.prompts.images_per_prompt)
    number = 2 if wanted.dtype == "float16" else 4
    embedded, per_shard = embedding_bytes(config, costs), _prompts_per_shard(config)
    copied = file_bytes(config, config.synthesize.image_format)
    size, buckets = config.prompts.samples_per_shard, len(config.prompts.buckets)
    latents = latent_bytes(config, costs, number)
    reading = Phase(
        "latents",
        () if has_latents else encoded(config, costs, pictures, wanted.micro_batch),
        core_seconds=pictures * (_SECONDS + (copied + latents) / _BYTES_A_SECOND),
        by=wanted.pool,
        pieces=pieces_of(pictures, size, buckets),
    )
    calls = prompts / wanted.micro_batch * 2 * costs.blocks
    embedding = Phase(
        "embeddings",
        (Part("text", prompts * costs.text(), calls),),
        by=wanted.pool,
        pieces=pieces_of(prompts, per_shard),
    )
    largest_shard = max(size * (copied + latents), min(prompts, per_shard) * embedded)
    return Work(
        samples=pictures,
        unit="pictures",
        phases=(reading, embedding) if embedded else (reading,),
        counts={"ok": pictures, "prompts": prompts},
        store_bytes=pictures * (latents + _BYTES) + prompts * (embedded + _BYTES),
        scratch_bytes=largest_shard,
        device_bytes=costs.sampling_bytes(largest(config), wanted.micro_batch),
        model_bytes=costs.folder_bytes(),
    )


def run(context: StageContext) -> StageResult:
    config = context.config.encode
    sources = _sources(context)
    build = partial(Encoder, context.config, context.store, context.folder, sources)
    done = map_shards(context, sorted(sources), build, config.pool)
    counts: Counter[str] = Counter()
    for stats in done.values():
        counts.update(stats.counts)
    failed = all_kinds(done.values())
    if not counts["ok"]:
        raise StageFailed(
            f"encode: no picture could be encoded ({dict(counts)}): {commonest(failed)}; look at "
            f"the sidecars in {context.folder}"
        )
    lists = _write_prompt_lists(context, done)
    shards = [name.removesuffix(".prompts.parquet") for name in lists]
    if config.embeddings == "stored":
        embed = partial(PromptEncoder, context.config, context.store, context.folder)
        done |= map_shards(context, shards, embed, config.pool, unit="prompt shards")
    counts["prompts"] = sum(stats.details.get("prompts", 0) for stats in done.values())
    return StageResult.of_shards(
        done.values(),
        worker_devices(config.pool),
        files=lists,
        counts=dict(counts),
        details=_layout(done, shards) | ({"failures": failed} if failed else {}),
    )


def _sources(context: StageContext) -> dict[str, dict[str, Any]]:
    """Map our shard names to their tars: a URL, or an artifact and the entry it must match."""
    external = context.config.encode.external
    if external is not None:
        names = shard_names(expand(external, EXTERNAL, (".tar",)))
        return {name: {"url": url} for name, url in names.items()}
    synthesized = context.inputs["synthesize"]
    entries = synthesized.files("shards/", ".tar")
    tars = {entry.path.removesuffix(".tar"): entry for entry in entries}
    return {shard: {"artifact": synthesized, "entry": entry} for shard, entry in tars.items()}


def _write_prompt_lists(
    context: StageContext, done: dict[str, ShardStats]
) -> dict[str, tuple[int, str]]:
    """Write each prompt once, sorted by id, in lists of a shard each: the work of the second pass.
    Returns each list's file with its size in bytes and its sha256.

    An id is a hash, so its first digits split the prompts into parts of similar size; only one part
    at a time is in memory.
    """
    import pyarrow.parquet as pq

    written: dict[str, tuple[int, str]] = {}
    most = _prompts_per_shard(context.config)

    def write(rows: list[tuple[str, str]]) -> None:
        name = f"shards/prompts/{len(written):06d}.prompts.parquet"
        table = table_bytes([{"prompt_id": i, "prompt": p} for i, p in rows], PROMPT_COLUMNS)
        written[name] = context.store.write(f"{context.folder}/{name}", table)

    left: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("texts")) as scratch:
        for part in _by_first_digits(context, done, Path(scratch)):
            texts = pq.read_table(part)
            unique = dict(
                zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True)
            )
            left += sorted(unique.items())
            while len(left) >= most:
                write(left[:most])
                del left[:most]
    if left:
        write(left)
    return written


def _prompts_per_shard(config: PipelineConfig) -> int:
    costs = model_costs(config.teacher)
    size = 0.0 if costs is None else embedding_bytes(config, costs)
    return (
        max(1, min(PROMPTS_PER_SHARD, int(BYTES_PER_SHARD / size))) if size else PROMPTS_PER_SHARD
    )


def _by_first_digits(
    context: StageContext, done: dict[str, ShardStats], scratch: Path
) -> list[Path]:
    """Spread the shards' prompts over files, one per first digits of an id; returns them sorted."""
    import pyarrow.compute as pc  # takes longer to import than all of Arrow's rest
    import pyarrow.parquet as pq

    schema = schema_of(PROMPT_COLUMNS)

    def read(stats: ShardStats) -> Any:
        with context.store.local(f"{context.folder}/{stats.details['prompts_file']}") as path:
            return pq.read_table(path, schema=schema)

    with contextlib.ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for texts in in_order(read, list(done.values()), _AT_ONCE):
            digits = pc.utf8_slice_codeunits(texts["prompt_id"], 0, _DIGITS)
            for part in pc.unique(digits).to_pylist():
                if part not in writers:
                    file = pq.ParquetWriter(scratch / f"{part}.parquet", schema)
                    writers[part] = stack.enter_context(file)
                writers[part].write_table(texts.filter(pc.equal(digits, part)))
    return sorted(scratch.iterdir())


def _layout(done: dict[str, ShardStats], prompt_shards: list[str]) -> dict[str, Any]:
    """Build the index that `stages.data.latent_batches.LatentData` reads: the files and rows of
    each bucket, and the prompt files in order.
    """
    buckets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, stats in sorted(done.items()):
        for part in stats.details.get("latents", []):
            buckets[part["bucket"]].append({name: part[name] for name in ("file", "index", "rows")})
    first = next((done[shard].details for shard in prompt_shards if shard in done), {})
    layout = {"token_layout": first["token_layout"]} if "token_layout" in first else {}
    return layout | {
        "buckets": dict(sorted(buckets.items())),
        "prompts": [f"{shard}.prompts.parquet" for shard in prompt_shards],
        "embeddings": [
            {part: f"{shard}.{part}.npy" for part in first.get("parts", ["tokens", "pooled"])}
            for shard in prompt_shards
            if shard in done
        ],
        "null_tokens": first.get("null_tokens", 0),
    }


Row = dict[str, Any]
"""A row of the sidecar."""
_Ready: TypeAlias = "tuple[Row, Taken]"


class Encoder:
    """Encodes whole shards, in a worker that has the VAE loaded."""

    def __init__(
        self,
        config: PipelineConfig,
        store: ArtifactStore,
        folder: str,
        sources: dict[str, dict[str, Any]],
    ) -> None:
        self.config, self.store, self.folder, self.sources = config.encode, store, folder, sources
        self.buckets = config.prompts.bucket_list()
        self.held_out_fraction = config.prompts.held_out_fraction
        self.rules = self.config if self.config.external is not None else _own_rules(self.config)
        self.teacher = open_teacher_in(self.config.pool, config.teacher)
        for bucket in self.buckets:
            self.teacher.check_bucket(bucket)
        self.shapes = {self.teacher.latent_shape(bucket): bucket for bucket in self.buckets}

    def __call__(self, shard: str) -> ShardStats:
        import numpy as np

        writer = ShardWriter(self.store, self.folder, shard)  # whose clock runs from here on
        source = self.sources[shard]
        rows, ready = self._taken(self._samples(source))
        prompts: dict[str, str] = {}
        parts: list[dict[str, Any]] = []
        name = shard.removeprefix("shards/").replace("/", "-")
        for bucket, taken in sorted(ready.items()):
            kept, latents = self._encoded(taken)
            if not kept:
                continue
            base = f"latents/{bucket}/{name}"
            with writer.file("", name=f"{base}.npy").open("wb") as file:
                np.save(file, latents, allow_pickle=False)
            ids = [prompt_id(sample.prompt) for _, sample in kept]
            prompts.update(zip(ids, (sample.prompt for _, sample in kept), strict=True))
            index = [
                {"key": row["key"], "prompt_id": i} for (row, _), i in zip(kept, ids, strict=True)
            ]
            writer.file("", table_bytes(index, ROW_COLUMNS), name=f"{base}.parquet")
            parts.append(
                {
                    "bucket": str(bucket),
                    "file": f"{base}.npy",
                    "index": f"{base}.parquet",
                    "rows": len(kept),
                }
            )
        writer.file(".parquet", table_bytes(rows, SIDECAR_COLUMNS))
        texts = [{"prompt_id": i, "prompt": p} for i, p in sorted(prompts.items())]
        writer.file(".texts.parquet", table_bytes(texts, PROMPT_COLUMNS))
        counts = Counter(ok=0, failed=0)
        counts.update(row["status"] for row in rows)
        details = {"latents": parts, "prompts_file": f"{shard}.texts.parquet"}
        return writer.commit(dict(counts), details | {"failures": failed_kinds(rows)})

    def _taken(self, samples: Iterable[Sample]) -> tuple[list[Row], dict[Bucket, list[_Ready]]]:
        """Return the sidecar's rows, and by bucket those that can be used with what they hold."""
        from stages.data.sample_members import read_sample

        rows: list[Row] = []
        ready: dict[Bucket, list[_Ready]] = defaultdict(list)
        for key, members, problem in samples:
            row: Row = {"key": key, "bucket": None, "status": "ok", "reason": None}
            rows.append(row)
            try:
                if problem is not None:
                    raise UnusableSample(problem)
                sample = read_sample(members, self.rules, self.shapes)
            except UnusableSample as error:
                row |= {"status": "failed", "reason": recorded(error)}
                continue
            row["bucket"] = str(sample.bucket)
            if split_of(sample.prompt, self.held_out_fraction) == "held_out":  # in external data
                row |= {"status": "filtered", "reason": HELD_OUT}
            else:
                ready[sample.bucket].append((row, sample))
        return rows, ready

    def _samples(self, source: dict[str, Any]) -> Iterator[Sample]:
        if "url" in source:
            with copied(source["url"], EXTERNAL) as path:
                yield from read_samples(path, shown(source["url"]))
            return
        artifact: Artifact = source["artifact"]
        with artifact.checked(source["entry"]) as path:
            yield from read_samples(path, f"{artifact.url}/{source['entry'].path}")

    def _encoded(self, taken: list[_Ready]) -> tuple[list[_Ready], np.ndarray]:
        """Return one bucket's samples with their latents (n, C, H, W), without those whose latents
        are not finite: their rows say so.
        """
        import numpy as np

        latents = self._latents([sample.content for _, sample in taken])
        finite = np.isfinite(latents).all(axis=(1, 2, 3))
        for (row, _), sound in zip(taken, finite, strict=True):
            if not sound:
                reason = f"the autoencoder's latents of it are not finite in {latents.dtype}"
                row |= {"status": "failed", "reason": reason}
        kept = [ready for ready, sound in zip(taken, finite, strict=True) if sound]
        return kept, latents if finite.all() else latents[finite]

    def _latents(self, contents: list[np.ndarray]) -> np.ndarray:
        """Return latents (n, C, H, W) in the order of `contents`: pictures, or latents already."""
        import numpy as np

        out = list(contents)
        pictures = [i for i, content in enumerate(out) if content.dtype == np.uint8]
        for start in range(0, len(pictures), self.config.micro_batch):
            part = pictures[start : start + self.config.micro_batch]
            for i, latents in zip(
                part, self.teacher.encode_pictures(np.stack([out[i] for i in part])), strict=True
            ):
                out[i] = latents.cpu().numpy()
        with np.errstate(over="ignore"):
            return np.stack(out).astype(self.config.dtype)


class PromptEncoder:
    """Embeds lists of prompts, in a worker that has the text encoders loaded."""

    def __init__(self, config: PipelineConfig, store: ArtifactStore, folder: str) -> None:
        self.config, self.store, self.folder = config.encode, store, folder
        self.teacher = open_teacher_in(self.config.pool, config.teacher)
        self.layout = None
        if self.config.embedding_format != "whole":
            empty = self.teacher.encode_prompts([""]).tokens_BLD
            self.layout = TokenLayout.of(empty[0].cpu().numpy())

    def __call__(self, shard: str) -> ShardStats:
        import numpy as np
        import pyarrow.parquet as pq

        writer = ShardWriter(self.store, self.folder, shard)
        with self.store.local(f"{self.folder}/{shard}.prompts.parquet") as path:
            prompts = pq.read_table(path)["prompt"].to_pylist()
        size = self.config.micro_batch
        arrays: dict[str, np.memmap] = {}
        for start in range(0, len(prompts), size):
            encoded = self.teacher.encode_prompts(prompts[start : start + size])
            # Write each batch to the file now: a GPU cannot hold the T5 tokens of a whole shard.
            for name, rows in self._rows(encoded).items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        writer.file(f".{name}.npy"),
                        mode="w+",
                        dtype=rows.dtype,
                        shape=(len(prompts), *rows.shape[1:]),
                    )
                arrays[name][start : start + len(rows)] = rows
        for array in arrays.values():
            array.flush()
        details: dict[str, Any] = {"null_tokens": encoded.null_tokens, "prompts": len(prompts)}
        if self.layout is not None:
            details |= {"parts": list(arrays), "token_layout": self.layout.written()}
        return writer.commit({}, details)

    def _rows(self, encoded: Conditioning) -> dict[str, np.ndarray]:
        """A batch's rows of each file, by the file's part of the name."""
        import torch

        dtype = getattr(torch, self.config.dtype)
        tokens, pooled = (
            tensor.to(dtype).cpu().numpy() for tensor in (encoded.tokens_BLD, encoded.pooled_BP)
        )
        if self.layout is None:
            return {"tokens": tokens, "pooled": pooled}
        packed = self.layout.pack(tokens)
        if self.config.embedding_format == "packed":
            return {"tokens": packed, "pooled": pooled}
        codes, scales = to_8_bits(packed)
        return {"tokens": codes, "pooled": pooled, "scales": scales}


def _own_rules(config: EncodeConfig) -> EncodeConfig:
    """Return the rules for shards of `synthesize`: those for other people's do not apply."""
    kept = {name: getattr(config, name) for name in ("dtype", "use_teacher_latents")}
    return EncodeConfig(**kept, min_side=1, max_aspect=sys.maxsize)
