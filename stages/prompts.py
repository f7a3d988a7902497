"""Stage `prompts`: turns sources into cleaned, de-duplicated, split prompts, and plans every image
shard.

Works in two passes over a spool on the local disk: the first cleans and measures, the second writes
the prompts that survive. Memory hardly grows with the number of prompts: 421 MiB for a million, and
28 bytes for each further one (`benchmarks/prompts_memory.py`). A prompt's split, bucket and seeds
depend on its text, not on the other prompts: adding prompts moves none.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.failures import Failures, recorded
from pipeline.base.parquet import Columns, TableWriter
from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.work import Above, Phase, Work
from schemas.bucket import Bucket
from schemas.config import FileSource, PipelineConfig, PromptsConfig
from schemas.errors import StageFailed
from stages.teachers import check_teacher, open_teacher, teacher_models
from stages.teachers.hub_models import HubModel
from stages.texts.identity import (
    SAMPLE_COLUMNS,
    bucket_of,
    compared,
    prompt_id,
    seed_of,
    split_of,
)
from stages.texts.prompt_files import Row
from stages.texts.sources import mixed, require_prompts

if TYPE_CHECKING:
    import numpy as np

_SECONDS = 0.0003
"""That a core takes for a prompt: 8.9 s for 30,000 (benchmarks/prompts_memory.py)."""
_BYTES = 100.0
"""Of a prompt or a planned sample in Parquet, and ..."""
_SIGNATURE_BYTES = 528.0
"""... of what is spooled of a prompt to find its like."""
CHUNK = 4096
ROWS_PER_FILE = 100_000

PROMPT_COLUMNS = {
    "prompt_id": "string",
    "prompt": "string",
    "source": "string",
    "bucket": "string",
    "split": "string",
    "tokens": "int32",
}
FAILED = "failed.parquet"
FAILED_COLUMNS = {"source": "string", "place": "string", "reason": "string"}


def check(config: PipelineConfig) -> None:
    """Raise ConfigError if a file of prompts is missing or holds none, or the teacher's folder is
    not whole.
    """
    check_teacher(config.teacher)
    for source in config.prompts.sources:
        if isinstance(source, FileSource):
            require_prompts(source)


def models(config: PipelineConfig) -> list[HubModel]:
    return teacher_models(config.teacher)


def estimate(config: PipelineConfig) -> str:
    count = config.prompts.count
    return "all prompts" if count is None else f"{count:,} prompts"


def work(config: PipelineConfig, above: Above) -> Work | None:
    """One process cleans, compares and plans the prompts. None if nobody knows how many there are
    before they are read.
    """
    prompts = config.prompts
    if prompts.count is None:
        return None
    held_out = round(prompts.count * prompts.held_out_fraction)
    train = prompts.count - held_out
    counts = {
        "kept": prompts.count,
        "held_out": held_out,
        "train": train,
        "samples": train * prompts.images_per_prompt,
    }
    cleaning = Phase("prompts", core_seconds=prompts.count * _SECONDS)
    return Work(
        samples=prompts.count,
        unit="prompts",
        phases=(cleaning,),
        counts=counts,
        store_bytes=_BYTES * (prompts.count + counts["samples"]),
        scratch_bytes=(_BYTES + _SIGNATURE_BYTES) * prompts.count,
    )


def run(context: StageContext) -> StageResult:
    config = context.config.prompts
    teacher = open_teacher(context.config.teacher)
    for bucket in config.bucket_list():
        teacher.check_bucket(bucket)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("prompts")) as scratch:
        spool = Path(scratch)
        with _Failed(context, spool) as failed:
            total = _clean_into(spool, config, teacher, counts, context, failed)
        files = failed.close(counts)
        keep = _survivors(spool, total, config, counts)
        if not keep.any():
            raise StageFailed(
                f"prompts: no prompt survived cleaning ({_spell(counts)}); look at prompts.* "
                "in the configuration"
            )
        writer = _Writer(context, config, spool)
        for chunk in _spooled(spool, keep):
            for row in chunk:
                writer.add(row)
        files |= writer.close()
    counts.update(writer.counts)
    context.report("prompts", counts["kept"], counts["kept"])
    return StageResult(files=files, counts=dict(counts), details={"shards": sorted(writer.shards)})


def _clean_into(
    spool: Path,
    config: PromptsConfig,
    teacher: Any,
    counts: Counter,
    context: StageContext,
    failed: _Failed,
) -> int:
    """First pass: draw and filter prompts; spool the survivors with their hashes and MinHash
    signatures. Returns the number of survivors.
    """
    from stages.texts.duplicates import signatures

    block = [re.compile(pattern, re.IGNORECASE) for pattern in config.block]
    longest = config.max_tokens or teacher.max_tokens
    drawn = mixed(config.sources, config.seed)
    if config.count is not None:
        drawn = islice(drawn, config.count)
    total = 0
    columns = {"prompt": "string", "source": "string", "tokens": "int32"}
    with (
        TableWriter(spool / "prompts.parquet", columns) as rows,
        open(spool / "equal.bin", "wb") as equal,
        open(spool / "similar.bin", "wb") as similar,
    ):
        while batch := list(islice(drawn, CHUNK)):
            counts["drawn"] += len(batch)
            texts = [(row.prompt, row.source) for row in batch if row.prompt is not None]
            failed.add(batch)
            tokens = teacher.count_tokens([text for text, _ in texts])
            kept = []
            for (text, source), length in zip(texts, tokens, strict=True):
                reason = _reason(text, length, config.min_tokens, longest, block)
                if reason:
                    counts[f"dropped_{reason}"] += 1
                else:
                    kept.append({"prompt": text, "source": source, "tokens": length})
            rows.write(kept)
            prompts = [row["prompt"] for row in kept]
            equal.write(b"".join(map(_digest, prompts)))
            if config.near_duplicates is not None:
                similar.write(signatures(prompts).tobytes())
            total += len(kept)
            context.report("prompts", counts["drawn"], config.count or 0)
    return total


def _digest(prompt: str) -> bytes:
    """16 bytes that two prompts share if they differ in letter case or invisible characters."""
    return hashlib.blake2b(compared(prompt).casefold().encode(), digest_size=16).digest()


def _reason(
    text: str, tokens: int, shortest: int, longest: int, block: list[re.Pattern[str]]
) -> str | None:
    if any(pattern.search(text) for pattern in block):
        return "blocked"
    if tokens < shortest:
        return "short"
    return "long" if tokens > longest else None


def _survivors(spool: Path, total: int, config: PromptsConfig, counts: Counter) -> np.ndarray:
    """Return a mask (total,) bool over the spool's rows: False for duplicates."""
    from stages.texts.duplicates import first_of_equals, first_of_similar

    keep = first_of_equals(spool / "equal.bin", total)
    counts["dropped_duplicate"] = int(total - keep.sum())
    if config.near_duplicates is not None and total:
        unlike = first_of_similar(spool / "similar.bin", keep, config.near_duplicates)
        counts["dropped_near_duplicate"] = int(keep.sum() - unlike.sum())
        keep = unlike
    return keep


def _spooled(spool: Path, keep: np.ndarray) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    for batch in pq.ParquetFile(spool / "prompts.parquet").iter_batches(CHUNK):
        mask = pa.array(keep[start : start + len(batch)])
        start += len(batch)
        yield batch.filter(mask).to_pylist()


def _spell(counts: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


class _Failed:
    """Rows that are no prompts: counted, and listed in the artifact's failed.parquet."""

    def __init__(self, context: StageContext, scratch: Path) -> None:
        where = f"{context.folder}/{FAILED}"
        self._failures = Failures(context, what="rows", where=where)
        self._context, self._local = context, scratch / FAILED

    def __enter__(self) -> _Failed:
        self._file = TableWriter(self._local, FAILED_COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: list[Row]) -> None:
        failed = [row for row in rows if row.prompt is None]
        for row in rows:
            self._failures.add(row.reason)
        if failed:
            listed = [
                {"source": row.source, "place": row.place, "reason": recorded(row.reason)}
                for row in failed
            ]
            self._file.write(listed)

    def close(self, counts: Counter) -> dict[str, tuple[int, str]]:
        """Store the list, if any row failed; warn or stop as `failures` says."""
        if not self._failures.failed:
            return {}
        counts["failed"] = self._failures.failed
        put = self._context.store.put(self._local, f"{self._context.folder}/{FAILED}")
        self._failures.tell()
        return {FAILED: put}


class _Writer:
    """Second pass: writes prompt files of 100,000 rows, and one sample list per planned shard."""

    def __init__(self, context: StageContext, config: PromptsConfig, scratch: Path) -> None:
        self._context, self._config, self._scratch = context, config, scratch
        self._prompts: list[dict[str, Any]] = []
        self._samples: dict[str, list[dict[str, Any]]] = {name: [] for name in config.buckets}
        self._held_out: list[dict[str, Any]] = []
        self._held_out_file = TableWriter(scratch / "held_out.parquet", SAMPLE_COLUMNS)
        self._numbers: Counter[str] = Counter()
        self.files: dict[str, tuple[int, str]] = {}
        self.shards: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        config, prompt = self._config, row["prompt"]
        identity, bucket = prompt_id(prompt), bucket_of(prompt, config.buckets)
        split = split_of(prompt, config.held_out_fraction)
        self.counts["kept"] += 1
        self.counts[split] += 1
        self.counts[f"bucket_{bucket}"] += 1
        self._prompts.append({"prompt_id": identity, "bucket": bucket, "split": split, **row})
        if len(self._prompts) == ROWS_PER_FILE:
            self._flush_prompts()
        samples = self._held_out if split == "held_out" else self._samples[bucket]
        width, height = Bucket.parse(bucket)
        for image in range(1 if split == "held_out" else config.images_per_prompt):
            samples.append(
                {
                    "key": f"{identity}-{image:03d}",
                    "prompt_id": identity,
                    "prompt": prompt,
                    "seed": seed_of(config.seed, prompt, image),
                    "width": width,
                    "height": height,
                }
            )
            if split == "held_out":
                if len(samples) == ROWS_PER_FILE:
                    self._flush_held_out()
            else:
                self.counts["samples"] += 1
                if len(samples) == config.samples_per_shard:
                    self._flush_shard(bucket)

    def close(self) -> dict[str, tuple[int, str]]:
        self._flush_prompts()
        for bucket in self._samples:
            self._flush_shard(bucket)
        self._flush_held_out()
        self._held_out_file.close()
        self._send("held_out.parquet", self._scratch / "held_out.parquet")
        return self.files

    def _flush_held_out(self) -> None:
        self._held_out_file.write(self._held_out)
        self._held_out.clear()

    def _flush_prompts(self) -> None:
        if self._prompts:
            self._put(
                f"prompts/{self._numbers['prompts']:06d}.parquet", self._prompts, PROMPT_COLUMNS
            )
            self._numbers["prompts"] += 1
            self._prompts.clear()

    def _flush_shard(self, bucket: str) -> None:
        samples = self._samples[bucket]
        if samples:
            shard = f"shards/{bucket}/{self._numbers[bucket]:06d}"
            self._put(f"{shard}.parquet", samples, SAMPLE_COLUMNS)
            self._numbers[bucket] += 1
            self.shards.append(shard)
            samples.clear()

    def _put(self, name: str, rows: list[dict[str, Any]], columns: Columns) -> None:
        local = self._scratch / "out.parquet"
        with TableWriter(local, columns) as table:
            table.write(rows)
        self._send(name, local)

    def _send(self, name: str, local: Path) -> None:
        self.files[name] = self._context.store.put(local, f"{self._context.folder}/{name}")
