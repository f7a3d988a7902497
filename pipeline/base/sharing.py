"""What becomes of the shards that other runs have claimed: they are made, or given up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pipeline.base.claims import POLL_SECONDS, Claims
from pipeline.base.lease import BEAT_SECONDS
from pipeline.base.markers import read_marker
from schemas.records import ShardStats


def settled(claims: Claims, folder: str, claimed: Sequence[str]) -> Iterator[ShardStats | str]:
    """Wait for the shards that other runs have claimed. Yields the statistics of one that is made,
    or its name if this run is to make it: its claim is gone, or was a dead run's.

    As soon as there is something to make, yields what is left by name and ends.
    """
    waiting, looked = list(claimed), time.monotonic()
    while waiting:
        is_long = time.monotonic() - looked >= BEAT_SECONDS
        free = _free(claims, waiting, watch=is_long)
        # A marker is written before the claim is given back, so it is read after it.
        for shard in list(waiting):
            made = read_marker(claims.store, folder, shard)
            if made is not None:
                waiting.remove(shard)
                free.discard(shard)
                yield made
        if free:
            yield from waiting
            return
        if is_long:
            looked = time.monotonic()
        if waiting:
            time.sleep(POLL_SECONDS)


def _free(claims: Claims, shards: Sequence[str], *, watch: bool) -> set[str]:
    """Return the shards that this run can make: nobody claims them, or it has taken the claim of a
    dead run. With `watch`, it takes up to three beats to tell whether a run elsewhere is dead.
    """
    free: set[str] = set()
    is_live: dict[str, bool] = {}
    for shard in shards:
        owner = claims.owner(shard)
        if owner is None or owner == claims.token:
            free.add(shard)
            continue
        if owner not in is_live:
            is_live[owner] = claims.is_live(owner, watch=watch)
        if not is_live[owner] and claims.take_from(owner, shard):
            free.add(shard)
    return free
