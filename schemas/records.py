"""The statistics of a shard."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import Field

from schemas.base import Frozen


class ShardStats(Frozen):
    """The `.json` file next to a shard. It is written last and marks the shard as done."""

    shard: str
    """Name within the artifact, without extension: shards/64x64/000003."""
    counts: dict[str, int]
    """ok, filtered, failed."""
    files: dict[str, str]
    """Every file of the shard and its sha256."""
    sizes: dict[str, int]
    """Every file of the shard and its bytes."""
    seconds: float
    details: dict[str, Any] = Field(default_factory=dict)
    seal: str = ""
    """Digest of all other fields, which tells a damaged marker from a sound one. Markers of older
    versions have none.
    """

    @property
    def samples(self) -> int:
        """How many samples it has, whatever became of them."""
        return sum(self.by_status.values())

    @property
    def by_status(self) -> dict[str, int]:
        """How many samples became what; `counts` also has how many are of which bucket."""
        return {name: n for name, n in self.counts.items() if not name.startswith("bucket_")}

    def own_seal(self) -> str:
        """Return the seal that these statistics must have."""
        return hashlib.sha256(self.model_dump_json(exclude={"seal"}).encode()).hexdigest()
