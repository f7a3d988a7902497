"""What a store says that it cannot promise."""

from __future__ import annotations

from pipeline.base.store import ArtifactStore


def limits(store: ArtifactStore) -> list[str]:
    """The warnings of a store, before work starts."""
    said: list[str] = []
    store.tell_limits(said.append)
    return said
