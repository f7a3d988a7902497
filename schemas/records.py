"""The statistics beside each shard."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.base import Frozen


class ShardStats(Frozen):
    """The `.json` beside a shard: written last, it marks the shard as done."""

    shard: str
    """Name within the artifact, without ending: shards/64x64/000003."""
    counts: dict[str, int]
    """ok, filtered, failed."""
    files: dict[str, str]
    """Every file of the shard and its sha256."""
    sizes: dict[str, int]
    """Every file of the shard and its bytes."""
    seconds: float
    details: dict[str, Any] = Field(default_factory=dict)
