"""Deterministic WebDataset shards: the same samples give the same bytes, and every reader groups
them correctly.

A shard is a tar of members `<key>.<extension>`, sorted, with mtime, uid and gid 0. Next to it are
a Parquet sidecar with one row per planned sample and `.json` statistics, which are written last and
mark the shard as done.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.markers import marker_of
from pipeline.base.scratch import scratch_prefix
from pipeline.base.storage_errors import scratch_explained
from pipeline.base.store import ArtifactStore
from pipeline.base.tars import read_samples
from schemas.errors import ArtifactError
from schemas.records import ShardStats

TarSample = tuple[str, dict[str, bytes]]
"""A sample's key (without dots) and its members: extension to bytes."""


def write_tar(path: Path, samples: list[TarSample]) -> None:
    """Write a plain tar. Raises ValueError for a key with a dot or a slash."""
    with scratch_explained(), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in sorted(samples):
            if "." in key or "/" in key:
                raise ValueError(f"sample key {key!r} has a dot or a slash")
            for extension, content in sorted(members.items()):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def read_tar(path: Path, where: str) -> Iterator[TarSample]:
    """Yield the samples of one of our own shards. Raises ArtifactError naming `where` if it is
    damaged, or holds what none of our shards holds.
    """
    for key, members, problem in read_samples(path, where):
        if problem is not None:
            raise ArtifactError(f"shard {where} cannot be ours: sample {key}: {problem}")
        yield key, members


class ShardWriter:
    """Collects one shard's files in a local folder, then uploads them to the store, the statistics
    last.
    """

    def __init__(self, store: ArtifactStore, artifact_folder: str, shard: str) -> None:
        self._store = store
        self._artifact_folder = artifact_folder
        self._shard = shard
        with scratch_explained():
            self._scratch = tempfile.TemporaryDirectory(prefix=scratch_prefix("shard"))
        self._files: list[tuple[str, Path]] = []
        self._started = time.monotonic()

    def file(self, ending: str, content: bytes | None = None, *, name: str | None = None) -> Path:
        """Return a local path for `<shard><ending>` (or `name`). The file is written here if
        `content` is given, else by the caller.
        """
        path = Path(self._scratch.name) / str(len(self._files))
        self._files.append((name or f"{self._shard}{ending}", path))
        if content is not None:
            with scratch_explained():
                path.write_bytes(content)
        return path

    def commit(self, counts: dict[str, int], details: dict[str, Any] | None = None) -> ShardStats:
        """Upload everything; only then does the shard count as done."""
        files, sizes = {}, {}
        for name, path in self._files:
            sizes[name], files[name] = self._store.put(path, f"{self._artifact_folder}/{name}")
        stats = ShardStats(
            shard=self._shard,
            counts=counts,
            files=files,
            sizes=sizes,
            seconds=round(time.monotonic() - self._started, 3),
            details=details or {},
        )
        stats = stats.model_copy(update={"seal": stats.own_seal()})
        self._store.write(
            marker_of(self._artifact_folder, self._shard), stats.model_dump_json(indent=2).encode()
        )
        self._scratch.cleanup()
        return stats
