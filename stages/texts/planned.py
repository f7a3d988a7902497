"""Which of the planned pictures are made, if not all: the first of every bucket, in proportion."""

from __future__ import annotations

from collections import defaultdict

from pipeline.base.store import Artifact


def chosen_shards(planned: Artifact, count: int | str | None) -> dict[str, int | None]:
    """Return the shards of the `prompts` artifact to make, and how many samples of each: None means
    all. With a `count`, buckets share it in proportion to what is planned of them.
    """
    shards: list[str] = planned.details["shards"]
    if count is None:
        return dict.fromkeys(shards)
    assert isinstance(count, int)
    by_bucket: dict[str, list[str]] = defaultdict(list)
    for shard in sorted(shards):
        by_bucket[shard.split("/")[1]].append(shard)
    full = planned.manifest.config["prompts"]["samples_per_shard"]
    last = {bucket: _samples(planned, names[-1]) for bucket, names in by_bucket.items()}
    sizes = {bucket: full * (len(names) - 1) + last[bucket] for bucket, names in by_bucket.items()}
    chosen: dict[str, int | None] = {}
    for bucket, quota in shares(sizes, count).items():
        for shard in by_bucket[bucket]:
            holds = last[bucket] if shard == by_bucket[bucket][-1] else full
            taken, quota = min(holds, quota), quota - min(holds, quota)
            if taken:
                chosen[shard] = None if taken == holds else taken
    return dict(sorted(chosen.items()))


def shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Divide `count` among buckets in proportion to their sizes, no more than each has: what is
    left after rounding down goes to the largest remainders, the first by name among equals.
    """
    whole = sum(sizes.values())
    count = min(count, whole)
    found = {bucket: size * count // whole for bucket, size in sizes.items()}
    remainders = sorted(sizes, key=lambda bucket: (-(sizes[bucket] * count % whole), bucket))
    for bucket in remainders[: count - sum(found.values())]:
        found[bucket] += 1
    return found


def _samples(planned: Artifact, shard: str) -> int:
    import pyarrow.parquet as pq

    with planned.checked(planned.entry(f"{shard}.parquet")) as path:
        return int(pq.ParquetFile(path).metadata.num_rows)
