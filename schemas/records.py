"""Rows of the data files: their columns, by name, and the statistics beside each shard."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from schemas.base import Frozen

PROMPT_COLUMNS = ("prompt_id", "prompt", "source", "bucket", "split", "tokens")
"""prompts/NNNNNN.parquet: every prompt that survived, training and held-out."""

SAMPLE_COLUMNS = ("key", "prompt_id", "prompt", "seed", "width", "height")
"""shards/<bucket>/NNNNNN.parquet of the prompts artifact: the samples that one image shard
holds.
"""

SIDECAR_COLUMNS = (*SAMPLE_COLUMNS, "bucket", "status", "reason", "sha256")
"""Beside each shard: one row per planned sample; status is ok, filtered or failed."""


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
