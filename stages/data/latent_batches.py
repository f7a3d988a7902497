"""The latents artifact as training reads it: rows by bucket, conditioning by prompt, read ahead.

Files in a local folder are memory-mapped. From any other store, a row is fetched by byte range when
an upcoming batch needs it and kept in a bounded local cache: a global shuffle needs neither whole
files nor all the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.base.checking import damaged
from pipeline.base.store import Artifact, require_intact
from schemas.errors import ArtifactError
from stages.data.row_files import FetchedRows, MappedRows, RangeCache, Rows, map_file
from stages.data.token_rows import TokenLayout, from_8_bits
from stages.ladd.backbone import Conditioning

READ_AHEAD = 4
"""Number of batches that are read before they are requested."""
_TABLES_AT_ONCE = 16


@dataclass
class _Bucket:
    latents: Rows
    prompt_rows: np.ndarray
    """Row of each sample's prompt in the sorted list of all prompts."""


class LatentData:
    """Random access to latents and conditioning, in their stored dtypes.

    `encode_prompts` is called only if the artifact has no embeddings. The local cache holds at most
    `cache_bytes` of a remote artifact. Raises ArtifactError if a file is missing or damaged.
    """

    def __init__(
        self,
        artifact: Artifact,
        encode_prompts: Callable[[Sequence[str]], Conditioning] | None = None,
        *,
        cache_bytes: int = 50 * 10**9,
    ) -> None:
        self._artifact, self._encode_prompts = artifact, encode_prompts
        self._layout: dict[str, Any] = artifact.details
        self._cache = None
        if not artifact.store.is_local:
            for damage in damaged(artifact):
                raise ArtifactError(f"{damage.text}; run `ladd-pipeline artifacts repair encode`")
            self._cache = RangeCache(artifact.store.filesystem, cache_bytes)
        ids = self._column(self._layout["prompts"], "prompt_id")
        self._buckets = {
            name: self._open(parts, ids) for name, parts in self._layout["buckets"].items()
        }
        stored = self._layout["embeddings"]
        self._embeddings = {
            part: self._rows([files[part] for files in stored])
            for part in (stored[0] if stored else ())
        }
        self._token_layout = None
        if "token_layout" in self._layout:
            self._token_layout = TokenLayout.read(self._layout["token_layout"])
        self.sizes = {name: len(bucket.prompt_rows) for name, bucket in self._buckets.items()}

    def batch(self, bucket: str, rows: Sequence[int] | np.ndarray) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, H, W) and their conditioning, on the CPU."""
        latents, prompt_rows, stored = self._read(bucket, rows)
        return latents, stored or self._encoded(prompt_rows)

    def ahead(
        self, wanted: Iterable[tuple[str, Sequence[int] | np.ndarray]], depth: int = READ_AHEAD
    ) -> Generator[tuple[str, Tensor, Conditioning], None, None]:
        """Yield the bucket, latents and conditioning of each of `wanted`, in order; another thread
        reads `depth` batches ahead.

        The reader thread runs no torch operation: torch would start a thread team for it, and
        libgomp, seeing more threads than cores, would put the training threads to sleep between
        operations. Nothing else may read at the same time. Close the iterator if you stop early.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        waiting: deque[tuple[str, Future]] = deque()
        wanted = iter(wanted)
        try:
            while True:
                for bucket, rows in wanted:
                    waiting.append((bucket, pool.submit(self._read, bucket, rows)))
                    if len(waiting) > depth:
                        break
                if not waiting:
                    return
                bucket, reading = waiting.popleft()
                latents, prompt_rows, stored = reading.result()
                # Prompts are encoded only now, in the caller's thread: encoders must not run
                # concurrently with training.
                yield bucket, latents, stored or self._encoded(prompt_rows)
        finally:
            pool.shutdown(cancel_futures=True)

    def conditioning(self, prompt_rows: Sequence[int] | np.ndarray) -> Conditioning:
        return self._stored(prompt_rows) or self._encoded(prompt_rows)

    @cached_property
    def prompts(self) -> list[str]:
        """All prompts, in the order of their ids."""
        return self._column(self._layout["prompts"], "prompt").to_pylist()

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _read(
        self, bucket: str, rows: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, np.ndarray, Conditioning | None]:
        data = self._buckets[bucket]
        prompt_rows = data.prompt_rows[list(rows)]
        latents = torch.from_numpy(data.latents.take(rows))
        return latents, prompt_rows, self._stored(prompt_rows)

    def _stored(self, prompt_rows: Sequence[int] | np.ndarray) -> Conditioning | None:
        if not self._embeddings:
            return None
        parts = {part: rows.take(prompt_rows) for part, rows in self._embeddings.items()}
        tokens, pooled = parts["tokens"], parts["pooled"]
        if "scales" in parts:
            tokens = from_8_bits(tokens, parts["scales"])
        if self._token_layout is not None:
            tokens = self._token_layout.unpack(tokens)
        return Conditioning(
            torch.from_numpy(tokens), torch.from_numpy(pooled), self._layout["null_tokens"]
        )

    def _encoded(self, prompt_rows: Sequence[int] | np.ndarray) -> Conditioning:
        assert self._encode_prompts is not None, "the artifact holds no embeddings"
        return self._encode_prompts([self.prompts[row] for row in prompt_rows])

    def _open(self, parts: list[dict[str, Any]], ids: pa.Array) -> _Bucket:
        names = self._column([part["index"] for part in parts], "prompt_id")
        rows = pc.index_in(names, value_set=ids)
        assert rows.null_count == 0, "a sample whose prompt is not listed"
        return _Bucket(self._rows([part["file"] for part in parts]), rows.to_numpy())

    def _rows(self, names: list[str]) -> Rows:
        """Several `.npy` files of the artifact as one array."""
        if self._cache is None:
            return MappedRows([self._mapped(name) for name in names])
        path = self._artifact.store.path
        sizes = {path(self._artifact.name(name)): self._artifact.entry(name).size for name in names}
        return FetchedRows(self._cache, sizes)

    def _mapped(self, name: str) -> np.ndarray:
        entry, where = self._artifact.entry(name), f"{self._artifact.url}/{name}"
        path = Path(self._artifact.store.path(self._artifact.name(name)))
        if not path.is_file():
            raise ArtifactError(f"{where} is missing; run `ladd-pipeline run --force encode`")
        if path.stat().st_size != entry.size:
            require_intact(path, entry.size, entry.sha256, where, "encode")
        return map_file(path, entry.size)

    def _column(self, names: Sequence[str], column: str) -> pa.Array:
        """One column of several Parquet files, each checked against the manifest."""

        def read(name: str) -> pa.ChunkedArray:
            with self._artifact.checked(self._artifact.entry(name)) as path:
                return pq.read_table(path, columns=[column])[column]

        with ThreadPoolExecutor(_TABLES_AT_ONCE) as pool:
            parts = list(pool.map(read, names))
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks]).combine_chunks()
