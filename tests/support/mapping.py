"""`map_shards` without Ray."""

from __future__ import annotations

import pytest


def map_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """`map_shards` as on a laptop of one core, without Ray."""
    from pipeline.base import mapping

    patch.setattr(mapping, "_demand", lambda pool: (1.0, 0.0))
    patch.setattr(mapping, "_pool_size", lambda cpus, gpus: 1)
