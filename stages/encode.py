"""Stage `encode`: encodes pictures to latents, by bucket in files made for training, and each
prompt to embeddings once.

Reads our shards or any WebDataset with image and text members (img2dataset's layout). Latent files
are plain `.npy` for memory-mapping, one bucket per file; the manifest's `details` is their index.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.mapping import map_shards, worker_devices
from pipeline.base.shards import ShardWriter, TarSample, read_tar, table_bytes
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from schemas.bucket import Bucket, nearest_bucket
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError, StageFailed
from schemas.records import ShardStats
from stages.pictures.files import IMAGE_ENDINGS, fit_to_bucket, read_picture
from stages.teachers import check_teacher, open_teacher_in
from stages.texts.identity import HELD_OUT, clean, prompt_id, split_of

PROMPTS_PER_SHARD = 4096
_DIGITS = 2
"""Leading hexadecimal digits of an id that select its part of the prompts: 256 parts."""
ROW_SCHEMA = pa.schema({"key": pa.string(), "prompt_id": pa.string()})
PROMPT_SCHEMA = pa.schema({"prompt_id": pa.string(), "prompt": pa.string()})
SIDECAR_SCHEMA = pa.schema(
    {"key": pa.string(), "bucket": pa.string(), "status": pa.string(), "reason": pa.string()}
)


def check(config: PipelineConfig) -> None:
    """Raise ConfigError if a pattern in `encode.external` matches nothing or the teacher's folder
    is not whole.
    """
    check_teacher(config.teacher)
    if config.encode.external is not None:
        expand(config.encode.external)


def estimate(config: PipelineConfig) -> str:
    if config.encode.external is not None:
        return "all pictures of the external shards"
    return f"{config.prompts.pictures_text()} pictures"


def run(context: StageContext) -> StageResult:
    config = context.config.encode
    sources = _sources(context)
    build = partial(Encoder, context.config, context.store, context.folder, sources)
    done = map_shards(context, sorted(sources), build, config.pool)
    counts: Counter[str] = Counter()
    for stats in done.values():
        counts.update(stats.counts)
    if not counts["ok"]:
        raise StageFailed(
            f"encode: no picture could be encoded ({dict(counts)}); look at the sidecars in "
            f"{context.folder}"
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
        details=_layout(done, shards),
    )


def expand(patterns: list[str]) -> list[str]:
    """Resolve paths, URLs and globs to a sorted list of files. Raises ConfigError for a pattern
    that matches nothing.
    """
    files: set[str] = set()
    for pattern in patterns:
        try:
            filesystem, path = fsspec.core.url_to_fs(pattern)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"encode.external: {pattern}: {error}") from error
        matches = (
            filesystem.glob(path)
            if glob.has_magic(path)
            else [path]
            if filesystem.exists(path)
            else []
        )
        if not matches:
            raise ConfigError(f"encode.external: nothing matches {pattern}")
        files |= {filesystem.unstrip_protocol(match) for match in matches}
    return sorted(files)


def _sources(context: StageContext) -> dict[str, dict[str, Any]]:
    """Map our shard names to their tars: a URL, or an artifact and the entry it must match."""
    external = context.config.encode.external
    if external is not None:
        return {f"shards/external/{i:06d}": {"url": url} for i, url in enumerate(expand(external))}
    synthesized = context.inputs["synthesize"]
    entries = synthesized.files("shards/", ".tar")
    tars = {entry.path.removesuffix(".tar"): entry for entry in entries}
    return {shard: {"artifact": synthesized, "entry": entry} for shard, entry in tars.items()}


def _write_prompt_lists(
    context: StageContext, done: dict[str, ShardStats]
) -> dict[str, tuple[int, str]]:
    """Write each prompt once, sorted by id, in lists of `PROMPTS_PER_SHARD`: the work of the second
    pass. Returns each list's file with its size in bytes and its sha256.

    An id is a hash, so its first digits split the prompts into parts of similar size; only one part
    at a time is in memory.
    """
    written: dict[str, tuple[int, str]] = {}

    def write(rows: list[tuple[str, str]]) -> None:
        name = f"shards/prompts/{len(written):06d}.prompts.parquet"
        table = table_bytes([{"prompt_id": i, "prompt": p} for i, p in rows], PROMPT_SCHEMA)
        written[name] = context.store.write(f"{context.folder}/{name}", table)

    left: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for part in _by_first_digits(context, done, Path(scratch)):
            texts = pq.read_table(part)
            unique = dict(
                zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True)
            )
            left += sorted(unique.items())
            while len(left) >= PROMPTS_PER_SHARD:
                write(left[:PROMPTS_PER_SHARD])
                del left[:PROMPTS_PER_SHARD]
    if left:
        write(left)
    return written


def _by_first_digits(
    context: StageContext, done: dict[str, ShardStats], scratch: Path
) -> list[Path]:
    """Spread the shards' prompts over files, one per first digits of an id; returns them sorted."""
    with contextlib.ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        for stats in done.values():
            with context.store.local(f"{context.folder}/{stats.details['prompts_file']}") as path:
                texts = pq.read_table(path, schema=PROMPT_SCHEMA)
            digits = pc.utf8_slice_codeunits(texts["prompt_id"], 0, _DIGITS)
            for part in pc.unique(digits).to_pylist():
                if part not in writers:
                    file = pq.ParquetWriter(scratch / f"{part}.parquet", PROMPT_SCHEMA)
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
    return {
        "buckets": dict(sorted(buckets.items())),
        "prompts": [f"{shard}.prompts.parquet" for shard in prompt_shards],
        "embeddings": [
            {part: f"{shard}.{part}.npy" for part in ("tokens", "pooled")}
            for shard in prompt_shards
            if shard in done
        ],
        "null_tokens": first.get("null_tokens", 0),
    }


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
        self.teacher = open_teacher_in(self.config.pool, config.teacher)
        for bucket in self.buckets:
            self.teacher.check_bucket(bucket)

    def __call__(self, shard: str) -> ShardStats:
        counts: Counter[str] = Counter(ok=0, failed=0)
        sidecar: list[dict[str, Any]] = []
        ready: dict[Bucket, list[tuple[str, str, Any]]] = defaultdict(list)
        for key, members in self._samples(self.sources[shard]):
            try:
                bucket, content, prompt = self._read(members)
            except ValueError as error:
                counts["failed"] += 1
                sidecar.append(
                    {"key": key, "bucket": None, "status": "failed", "reason": str(error)}
                )
                continue
            row: dict[str, Any] = {
                "key": key,
                "bucket": str(bucket),
                "status": "ok",
                "reason": None,
            }
            if split_of(prompt, self.held_out_fraction) == "held_out":  # possible in external data
                row |= {"status": "filtered", "reason": HELD_OUT}
            else:
                ready[bucket].append((key, prompt, content))
            counts[row["status"]] += 1
            sidecar.append(row)
        writer = ShardWriter(self.store, self.folder, shard)
        prompts: dict[str, str] = {}
        parts: list[dict[str, Any]] = []
        name = shard.removeprefix("shards/").replace("/", "-")
        for bucket, rows in sorted(ready.items()):
            base = f"latents/{bucket}/{name}"
            with writer.file("", name=f"{base}.npy").open("wb") as file:
                np.save(file, self._latents(rows), allow_pickle=False)
            ids = [prompt_id(prompt) for _, prompt, _ in rows]
            prompts.update(zip(ids, (prompt for _, prompt, _ in rows), strict=True))
            index = [{"key": key, "prompt_id": i} for (key, _, _), i in zip(rows, ids, strict=True)]
            writer.file("", table_bytes(index, ROW_SCHEMA), name=f"{base}.parquet")
            parts.append(
                {
                    "bucket": str(bucket),
                    "file": f"{base}.npy",
                    "index": f"{base}.parquet",
                    "rows": len(rows),
                }
            )
        writer.file(".parquet", table_bytes(sidecar, SIDECAR_SCHEMA))
        texts = [{"prompt_id": i, "prompt": p} for i, p in sorted(prompts.items())]
        writer.file(".texts.parquet", table_bytes(texts, PROMPT_SCHEMA))
        return writer.commit(
            dict(counts), {"latents": parts, "prompts_file": f"{shard}.texts.parquet"}
        )

    def _samples(self, source: dict[str, Any]) -> Iterator[TarSample]:
        if "url" in source:
            with tempfile.TemporaryDirectory() as scratch:
                filesystem, path = fsspec.core.url_to_fs(source["url"])
                copy = Path(scratch) / "shard.tar"
                try:
                    filesystem.get_file(path, str(copy))
                except OSError as error:
                    raise ArtifactError(f"shard {source['url']} cannot be read: {error}") from error
                yield from read_tar(copy, source["url"])
            return
        artifact: Artifact = source["artifact"]
        with artifact.checked(source["entry"]) as path:
            yield from read_tar(path, f"{artifact.url}/{source['entry'].path}")

    def _read(self, members: dict[str, bytes]) -> tuple[Bucket, Any, str]:
        """Return a sample's bucket, its latents or picture, and its prompt. Raises ValueError
        saying what is wrong with the sample.
        """
        prompt = clean(_text(members))
        if "latent.npy" in members and self.config.use_teacher_latents:
            latents = np.load(io.BytesIO(members["latent.npy"]), allow_pickle=False)
            factor = self.teacher.vae_factor
            return Bucket(latents.shape[2] * factor, latents.shape[1] * factor), latents, prompt
        ending = next((e for e in IMAGE_ENDINGS if e in members), None)
        if ending is None:
            raise ValueError(f"no picture among its members ({', '.join(sorted(members))})")
        picture = read_picture(members[ending], ending)
        bucket = nearest_bucket(*picture.size, self.buckets)
        return bucket, np.asarray(fit_to_bucket(picture, bucket)), prompt

    def _latents(self, rows: list[tuple[str, str, Any]]) -> np.ndarray:
        """Return the latents (n, C, H, W) of one bucket, in the order of `rows`."""
        dtype = np.dtype(self.config.dtype)
        out: list[np.ndarray] = [content for _, _, content in rows]
        pictures = [i for i, content in enumerate(out) if content.dtype == np.uint8]
        for start in range(0, len(pictures), self.config.micro_batch):
            part = pictures[start : start + self.config.micro_batch]
            for i, latents in zip(
                part, self.teacher.encode_pictures(np.stack([out[i] for i in part])), strict=True
            ):
                out[i] = latents.cpu().numpy()
        return np.stack(out).astype(dtype)


class PromptEncoder:
    """Embeds lists of prompts, in a worker that has the text encoders loaded."""

    def __init__(self, config: PipelineConfig, store: ArtifactStore, folder: str) -> None:
        self.config, self.store, self.folder = config.encode, store, folder
        self.teacher = open_teacher_in(self.config.pool, config.teacher)

    def __call__(self, shard: str) -> ShardStats:
        with self.store.local(f"{self.folder}/{shard}.prompts.parquet") as path:
            prompts = pq.read_table(path)["prompt"].to_pylist()
        size = self.config.micro_batch
        writer = ShardWriter(self.store, self.folder, shard)
        import torch

        dtype = getattr(torch, self.config.dtype)
        arrays: dict[str, np.memmap] = {}
        for start in range(0, len(prompts), size):
            encoded = self.teacher.encode_prompts(prompts[start : start + size])
            # Write each batch to the file now: a GPU cannot hold the T5 tokens of a whole shard.
            for name, tensor in (("tokens", encoded.tokens_BLD), ("pooled", encoded.pooled_BP)):
                rows = tensor.to(dtype).cpu().numpy()
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
        return writer.commit({}, {"null_tokens": encoded.null_tokens, "prompts": len(prompts)})


def _text(members: dict[str, bytes]) -> str:
    try:
        if "txt" in members:
            return members["txt"].decode()
        if "json" in members:
            record = json.loads(members["json"])
            return str(record.get("caption") or record["prompt"])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its caption cannot be read: {error!r}") from error
    raise ValueError("no txt and no json among its members")
