"""Shards of one small file each, made by a worker that needs no model."""

from __future__ import annotations

from pipeline.base.shards import ShardWriter
from pipeline.base.store import ArtifactStore
from schemas.records import ShardStats


def shard_names(count: int) -> list[str]:
    return [f"shards/64x64/{i:06d}" for i in range(count)]


def make_shard(
    store: ArtifactStore, folder: str, shard: str, content: bytes | None = None
) -> ShardStats:
    """Make a shard whose one file holds its name, or `content`."""
    writer = ShardWriter(store, folder, shard)
    writer.file(".tar", content or shard.encode())
    return writer.commit({"ok": 1})
