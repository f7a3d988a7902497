"""Which of the planned pictures are made, if not all."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.store import ArtifactStore
from stages.texts.planned import chosen_shards, shares
from tests.support.manifests import manifest_of

SIZES = {"64x64": [4, 4, 3], "96x40": [4, 1], "40x96": [2]}


@pytest.fixture
def planned(tmp_path):
    """Planned samples in shards of four, the last of each bucket cut short."""
    store, files = ArtifactStore(str(tmp_path / "store")), {}
    for bucket, sizes in SIZES.items():
        for number, size in enumerate(sizes):
            name = f"shards/{bucket}/{number:06d}"
            pq.write_table(pa.table({"key": ["k"] * size}), tmp_path / "rows.parquet")
            where = f"artifacts/prompts/k/{name}.parquet"
            files[f"{name}.parquet"] = store.put(tmp_path / "rows.parquet", where)
    names = [name.removesuffix(".parquet") for name in files]
    config = {"prompts": {"samples_per_shard": 4}}
    store.commit(manifest_of("prompts", files, config=config, details={"shards": names}))
    return store.find("prompts", "k")


def made(planned, count) -> dict[str, int]:
    """How many samples of each bucket."""
    found: dict[str, int] = {}
    for shard, size in chosen_shards(planned, count).items():
        _, bucket, number = shard.split("/")
        found[bucket] = found.get(bucket, 0) + (size or SIZES[bucket][int(number)])
    return found


def test_without_a_count_all_are_made(planned):
    assert set(chosen_shards(planned, None).values()) == {None}
    assert made(planned, None) == made(planned, 18) == {"64x64": 11, "96x40": 5, "40x96": 2}
    assert made(planned, 10_000) == made(planned, None)


def test_a_count_is_shared_in_proportion_and_exactly_met(planned):
    assert made(planned, 9) == {"64x64": 6, "96x40": 2, "40x96": 1}
    for count in range(1, 19):
        assert sum(made(planned, count).values()) == count


def test_a_smaller_count_makes_the_first_of_the_larger(planned):
    """So that their pictures are the same ones."""
    for bucket in SIZES:
        few, more = (
            {s: n or 9 for s, n in chosen_shards(planned, c).items() if bucket in s} for c in (7, 9)
        )
        assert all(shard in more and size <= more[shard] for shard, size in few.items())


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**7), min_size=1), st.integers(1)
)
def test_shares_add_up_and_none_is_off_by_a_whole(sizes, count):
    found, whole = shares(sizes, count), sum(sizes.values())
    assert sum(found.values()) == min(count, whole)
    for bucket, size in sizes.items():
        assert found[bucket] <= size
        assert abs(found[bucket] - size * min(count, whole) / whole) < 1
