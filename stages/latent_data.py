"""The latents artifact as training reads it: memory-mapped files, rows by bucket, conditioning by
prompt.

A store that is not a folder is copied once to a local cache, file by file, each checked against the
manifest.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.store import Artifact, check_file
from schemas.errors import ArtifactError
from stages.ladd.backbone import Conditioning


@dataclass
class _Bucket:
    files: list[np.ndarray]
    ends: list[int]
    prompt_rows: np.ndarray
    """Row of each sample's prompt in the sorted list of all prompts."""


class LatentData:
    """Random access to latents and conditioning.

    `encode_prompts` is asked only where the artifact holds no embeddings. Raises ArtifactError for
    a file that is missing or damaged.
    """

    def __init__(
        self,
        artifact: Artifact,
        cache: Path,
        encode_prompts: Callable[[Sequence[str]], Conditioning] | None = None,
    ) -> None:
        self._artifact, self._cache = artifact, cache
        layout = artifact.manifest.details
        tables = [pq.read_table(self._local(name)) for name in layout["prompts"]]
        self.prompts: list[str] = [p for t in tables for p in t["prompt"].to_pylist()]
        ids = np.asarray([i for t in tables for i in t["prompt_id"].to_pylist()])
        self._buckets = {name: self._open(parts, ids) for name, parts in layout["buckets"].items()}
        self._embeddings = [
            [self._map(files[part]) for files in layout["embeddings"]]
            for part in ("tokens", "pooled")
        ]
        self._ends = list(accumulate(len(array) for array in self._embeddings[0]))
        self._null_tokens = layout["null_tokens"]
        self._encode_prompts = encode_prompts
        self.sizes = {name: len(bucket.prompt_rows) for name, bucket in self._buckets.items()}

    def batch(self, bucket: str, rows: Sequence[int]) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, H, W) float32 and their conditioning, float32, on the CPU."""
        data = self._buckets[bucket]
        latents = np.stack([_row(data.files, data.ends, int(row)) for row in rows]).astype(
            np.float32
        )
        return torch.from_numpy(latents), self.conditioning(data.prompt_rows[list(rows)])

    def conditioning(self, prompt_rows: Sequence[int]) -> Conditioning:
        if not self._ends:
            assert self._encode_prompts is not None, "the artifact holds no embeddings"
            return self._encode_prompts([self.prompts[row] for row in prompt_rows])
        tokens, pooled = (
            torch.from_numpy(
                np.stack([_row(arrays, self._ends, int(row)) for row in prompt_rows]).astype(
                    np.float32
                )
            )
            for arrays in self._embeddings
        )
        return Conditioning(tokens, pooled, self._null_tokens)

    def _open(self, parts: list[dict], ids: np.ndarray) -> _Bucket:
        files = [self._map(part["file"]) for part in parts]
        wanted = [
            pq.read_table(self._local(part["index"]), columns=["prompt_id"])["prompt_id"]
            for part in parts
        ]
        names = np.concatenate(
            [column.to_numpy(zero_copy_only=False).astype(ids.dtype) for column in wanted]
        )
        return _Bucket(files, list(accumulate(len(f) for f in files)), np.searchsorted(ids, names))

    def _map(self, name: str) -> np.ndarray:
        try:
            return np.load(self._local(name), mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ArtifactError(
                f"{self._artifact.url}/{name} is not a readable .npy file: {error}"
            ) from error

    def _local(self, name: str) -> Path:
        """The file itself, or a checked copy in the cache."""
        store, entry = (
            self._artifact.store,
            next(f for f in self._artifact.manifest.files if f.path == name),
        )
        where = f"{self._artifact.url}/{name}"
        if store.is_local:
            path = Path(store.path(self._artifact.name(name)))
            if not path.is_file():
                raise ArtifactError(f"{where} is missing; run `ladd-pipeline run --force encode`")
            if path.stat().st_size != entry.size:
                check_file(path, entry.size, entry.sha256, where, "encode")
            return path
        path = self._cache / self._artifact.manifest.key / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._artifact.checked(entry) as copy:
                partial = path.with_name(f"{path.name}.{os.getpid()}")
                partial.write_bytes(copy.read_bytes())
                os.replace(partial, path)
        return path


def _row(arrays: list[np.ndarray], ends: list[int], row: int) -> np.ndarray:
    file = bisect_right(ends, row)
    return arrays[file][row - (ends[file] - len(arrays[file]))]
