"""The pairs artifact as tuning reads it: batches of one bucket, latents from memory-mapped shards,
conditioning by prompt.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.base.store import Artifact
from schemas.errors import ArtifactError
from schemas.manifest import FileEntry
from stages.data.row_files import map_bytes
from stages.ladd.backbone import Conditioning

SPLITS = ("train", "held_out")
_CHUNK = 16


@dataclass(frozen=True)
class _Pair:
    shard: int
    key: str
    prompt: int
    """Row of the pair's prompt in the sorted list of all prompts."""


class PairData:
    """Random access to the usable pairs of an artifact.

    `sizes` holds the number of pairs by split and bucket. `folder` keeps fetched shards and
    computed embeddings and must exist as long as this object. Raises ArtifactError if a file is
    missing or damaged.
    """

    def __init__(
        self,
        artifact: Artifact,
        folder: Path,
        encode_prompts: Callable[[Sequence[str]], Conditioning],
    ) -> None:
        shards = artifact.details["shards"]
        tables = []
        for shard in shards:
            with artifact.checked(artifact.entry(f"{shard}.parquet")) as path:
                tables.append(pq.read_table(path).to_pylist())
        usable = [
            (number, row)
            for number, rows in enumerate(tables)
            for row in rows
            if row["status"] == "ok"
        ]
        prompts = sorted({row["prompt"] for _, row in usable})
        places = {prompt: place for place, prompt in enumerate(prompts)}
        self._pairs: dict[str, dict[str, list[_Pair]]] = {split: {} for split in SPLITS}
        for number, row in usable:
            of_bucket = self._pairs[row["split"]].setdefault(row["bucket"], [])
            of_bucket.append(_Pair(number, row["key"], places[row["prompt"]]))
        self.sizes = {
            split: {bucket: len(pairs) for bucket, pairs in sorted(buckets.items())}
            for split, buckets in self._pairs.items()
        }
        self._shards = [
            MappedTar(artifact, artifact.entry(f"{shard}.tar"), folder) for shard in shards
        ]
        self._conditioning = PromptEmbeddings(prompts, encode_prompts, folder)

    def batch(
        self, split: str, bucket: str, rows: Sequence[int] | np.ndarray
    ) -> tuple[Tensor, Tensor, Conditioning]:
        """Latents of winners and losers, (P, C, H, W) each, and their conditioning; float32, on the
        CPU.
        """
        pairs = [self._pairs[split][bucket][int(row)] for row in rows]
        winners, losers = (
            torch.from_numpy(
                np.stack(
                    [self._shards[p.shard].array(f"{p.key}.{side}.latent.npy") for p in pairs]
                ).astype(np.float32)
            )
            for side in ("winner", "loser")
        )
        return winners, losers, self._conditioning.take([p.prompt for p in pairs])


class _Place(NamedTuple):
    start: int
    stop: int


class MappedTar:
    """The `.npy` members of an uncompressed tar, read in place: the file is checked once, then
    memory-mapped.
    """

    def __init__(self, artifact: Artifact, entry: FileEntry, folder: Path) -> None:
        self._where = f"{artifact.url}/{entry.path}"
        with artifact.checked(entry) as path:
            if not artifact.store.is_local:
                kept = folder / entry.path
                kept.parent.mkdir(parents=True, exist_ok=True)
                path = Path(shutil.move(path, kept))
            with tarfile.open(path, "r:") as tar:
                self._places = {
                    member.name: _Place(member.offset_data, member.offset_data + member.size)
                    for member in tar
                }
            self._bytes = map_bytes(path, entry.size)

    def array(self, member: str) -> np.ndarray:
        """Read one member. Raises ArtifactError if the tar does not have it."""
        if member not in self._places:
            raise ArtifactError(
                f"{self._where} has no {member}; run `ladd-pipeline run --force pairs`"
            )
        start, stop = self._places[member]
        return np.load(io.BytesIO(self._bytes[start:stop].tobytes()), allow_pickle=False)


class PromptEmbeddings:
    """Conditioning of each prompt, computed once and kept in float16 in a memory-mapped file.

    Prompts are encoded in fixed groups, each group when one of its prompts is first needed: a
    prompt's embedding does not depend on earlier requests, so resumed training repeats exactly.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        encode_prompts: Callable[[Sequence[str]], Conditioning],
        folder: Path,
    ) -> None:
        self._prompts, self._encode, self._folder = prompts, encode_prompts, folder
        self._files: dict[str, np.memmap] = {}
        self._null_tokens = 0
        self._done: set[int] = set()

    def take(self, rows: Sequence[int]) -> Conditioning:
        """Conditioning of the prompts in `rows`, float32, on the CPU."""
        for group in sorted({row // _CHUNK for row in rows} - self._done):
            self._fill(group)
        tokens, pooled = (
            torch.from_numpy(self._files[name][list(rows)].astype(np.float32))
            for name in ("tokens", "pooled")
        )
        return Conditioning(tokens, pooled, self._null_tokens)

    def _fill(self, group: int) -> None:
        rows = slice(group * _CHUNK, min((group + 1) * _CHUNK, len(self._prompts)))
        encoded = self._encode(self._prompts[rows])
        for name, tensor in (("tokens", encoded.tokens_BLD), ("pooled", encoded.pooled_BP)):
            if name not in self._files:
                self._files[name] = np.lib.format.open_memmap(
                    self._folder / f"{name}.npy",
                    mode="w+",
                    dtype=np.float16,
                    shape=(len(self._prompts), *tensor.shape[1:]),
                )
            self._files[name][rows] = tensor.half().cpu().numpy()
        self._null_tokens = encoded.null_tokens
        self._done.add(group)
