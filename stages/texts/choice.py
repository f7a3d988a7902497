"""Chooses a number of training prompts by a hash of their text, for pairs and for judging."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from pipeline.base.store import Artifact
from stages.texts.identity import hash_fraction


def chosen_prompts(
    planned: Artifact, count: int, purpose: str, last: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Choose at most `count` training prompts of a `prompts` artifact, ordered by a hash of text
    and purpose. Returns rows with prompt_id, prompt, width and height.

    Prompts whose ids are in `last` are chosen only if the others are too few.
    """

    def order(row: dict[str, Any]) -> tuple[bool, float, str]:
        identity = row["prompt_id"]
        return identity in last, hash_fraction(row["prompt"], purpose), identity

    return heapq.nsmallest(count, _training_prompts(planned), key=order)


def _training_prompts(planned: Artifact) -> Iterator[dict[str, Any]]:
    """Yield each training prompt once: the row of its first picture."""
    import pyarrow.parquet as pq

    columns = ["prompt_id", "prompt", "width", "height"]
    for shard in planned.details["shards"]:
        with planned.checked(planned.entry(f"{shard}.parquet")) as path:
            table = pq.read_table(path, columns=["key", *columns])
        for row in table.to_pylist():
            if row["key"].endswith("-000"):
                yield {name: row[name] for name in columns}
