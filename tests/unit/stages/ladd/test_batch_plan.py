"""Which samples an update sees, and where each has its place."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import (
    DistillConfig,
)
from stages.ladd.batch_plan import (
    BatchPlan,
    EmptyPlanError,
    accumulation_rounds,
    mismatched_slots,
    slots_of,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "micro", "world"), [(8, None, 1), (8, 2, 2), (7, 2, 3), (5, 1, 2), (4, 3, 4)]
)
def test_every_sample_has_a_place_on_one_rank_and_all_have_as_many_rounds(batch, micro, world):
    config = SimpleNamespace(global_batch=batch, micro_batch=micro, workers=world)
    rounds = [accumulation_rounds(config, rank, world) for rank in range(world)]
    placed = [
        slot
        for rank in range(world)
        for part in rounds[rank]
        for slot in slots_of(batch, rank, world)[part]
    ]
    assert placed == list(range(batch))
    assert len({len(parts) for parts in rounds}) == 1
    assert all(part.stop > part.start for parts in rounds for part in parts)
    most = -(-batch // world)
    assert all(p.stop - p.start <= (micro or most) + 1 for parts in rounds for p in parts)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "rounds"), [(4, 1), (3, 2), (2, 2), (1, 4)])
def test_fewer_workers_than_meant_take_more_rounds_of_the_same_size(world, rounds):
    config = DistillConfig(global_batch=16, workers=4, min_workers=1)
    parts = [accumulation_rounds(config, rank, world) for rank in range(world)]
    assert {len(of) for of in parts} == {rounds}
    assert max(part.stop - part.start for of in parts for part in of) <= 16 // 4


@given(
    sizes=st.dictionaries(
        st.sampled_from(["64x64", "96x40", "40x96"]), st.integers(0, 40), min_size=1
    ),
    batch=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_an_epoch_of_the_plan_sees_each_sample_at_most_once(sizes, batch, seed):
    if all(size < batch for size in sizes.values()):
        with pytest.raises(EmptyPlanError, match="global_batch"):
            BatchPlan(sizes, batch, seed)
        return
    plan = BatchPlan(sizes, batch, seed)
    seen = [
        (bucket, row)
        for step in range(plan.batches_per_epoch)
        for bucket, rows in [plan.batch(step)]
        for row in rows
    ]
    assert len(seen) == len(set(seen)) == sum(size // batch * batch for size in sizes.values())
    assert all(0 <= row < sizes[bucket] for bucket, row in seen)


def test_plan_is_a_pure_function_of_the_step():
    straight, jumping = (BatchPlan({"64x64": 50, "96x40": 33}, 8, 3) for _ in range(2))
    order = [straight.batch(step) for step in range(30)]
    for step in (29, 0, 17, 5, 29):
        bucket, rows = jumping.batch(step)
        assert bucket == order[step][0] and np.array_equal(rows, order[step][1])
    assert not np.array_equal(order[0][1], order[straight.batches_per_epoch][1])


def test_plan_reports_buckets_that_cannot_fill_a_batch():
    assert BatchPlan({"64x64": 50, "96x40": 3}, 8, 3).short_buckets == ["96x40"]


def test_parts_of_a_batch_know_the_samples_behind_them():
    plan = BatchPlan({"64x64": 50, "96x40": 33}, 8, 3)
    for step in range(10):
        bucket, rows = plan.batch(step)
        for slots, behind in ((range(3), rows[3]), (range(3, 8), rows[0]), (range(8), rows[0])):
            name, part = plan.part(step, slots, more=1)
            assert name == bucket and list(part) == [*rows[slots], behind]
            assert list(plan.part(step, slots)[1]) == list(rows[slots])


@pytest.mark.parametrize(
    ("batch", "share", "slots"),
    [
        (8, 0.0, []),
        (32, 0.2, list(range(0, 32, 4))),
        (4, 0.3, [0, 2]),
        (4, 0.5, [0, 1, 2, 3]),
        (2, 0.01, [0]),
        (3, 0.9, [0, 1, 2]),
    ],
)
def test_mismatched_samples_are_their_share_of_all_fakes(batch, share, slots):
    assert mismatched_slots(batch, share) == slots
