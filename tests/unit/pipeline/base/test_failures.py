"""What share of failed samples is told of, and what share ends a stage."""

from __future__ import annotations

import pytest

from pipeline.base import mapping
from pipeline.base.failures import Failures, all_kinds, commonest, failed_kinds, recorded
from pipeline.base.store import ArtifactStore
from schemas.errors import StageFailed
from schemas.records import ShardStats
from schemas.resources import WorkerPool
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import map_in_this_process


@pytest.fixture
def context_of(tmp_path):
    def make(warned, **limits):
        config = make_tiny_config(tmp_path, tmp_path / "store", failures=limits)
        return make_context("encode", config, ArtifactStore(config.store), warn=warned.append)

    return make


@pytest.mark.parametrize(
    ("failed", "total", "limits", "outcome"),
    [
        (0, 0, {}, "silence"),
        (5, 100, {}, "silence"),
        (6, 100, {}, "warning"),
        (50, 100, {}, "warning"),
        (51, 100, {}, "stop"),
        (99, 99, {}, "warning"),  # too few to judge
        (99, 99, {"stop_from": 10}, "stop"),
        (100, 100, {"stop_above": 1}, "warning"),
        (1, 100, {"warn_above": 0}, "warning"),
        (2, 100, {"stop_above": 0.01}, "stop"),
    ],
)
def test_the_share_of_failures_decides(context_of, failed, total, limits, outcome):
    warned: list[str] = []
    failures = Failures(context_of(warned, **limits))
    for number in range(total):
        failures.add(f"its jpg cannot be read: {number}" if number < failed else None)
    if outcome == "stop":
        with pytest.raises(StageFailed, match=r"its jpg cannot be read \(\d+\).*stop_above"):
            failures.tell()
    else:
        failures.tell()
    assert len(warned) == (outcome == "warning")
    assert all(f"{failed:,} of {total:,} samples" in text for text in warned)


@pytest.mark.parametrize(
    ("failed_of_50", "made", "stopped"),
    [
        ([50, 50, 50, 50, 50], 3, True),
        ([50, 0, 0, 0, 0], 5, False),  # the first one is the bad one
        ([0, 0, 0, 50, 50], 5, False),
        ([50, 50], 2, True),
    ],
)
def test_shards_stop_early_but_not_for_one(context_of, monkeypatch, failed_of_50, made, stopped):
    map_in_this_process(monkeypatch)
    shards = {f"shards/{i}": failed for i, failed in enumerate(failed_of_50)}
    seen, warned = [], []

    def work(name):
        seen.append(name)
        counts = {"ok": 50 - shards[name], "failed": shards[name]}
        details = {"failures": {"its jpg is empty": shards[name]}}
        return ShardStats(shard=name, counts=counts, files={}, sizes={}, seconds=0, details=details)

    def run():
        mapping.map_shards(context_of(warned), [*shards], lambda: work, WorkerPool(retries=0))

    if stopped:
        with pytest.raises(StageFailed, match=r"its jpg is empty \(\d+\)"):
            run()
    else:
        run()
        assert len(warned) == 1
    assert len(seen) == made


def test_kinds_are_counted_without_what_is_special_to_a_sample():
    rows = [
        {"status": "failed", "reason": "its jpg cannot be read: truncated by 3 bytes"},
        {"status": "failed", "reason": "its jpg cannot be read: truncated by 5 bytes"},
        {"status": "failed", "reason": "its txt is empty"},
        {"status": "ok", "reason": None},
        {"status": "filtered", "reason": "held out"},
    ]
    kinds = failed_kinds(rows)
    assert kinds == {"its jpg cannot be read": 2, "its txt is empty": 1}
    stats = ShardStats(
        shard="s", counts={}, files={}, sizes={}, seconds=0, details={"failures": kinds}
    )
    old = ShardStats(shard="t", counts={}, files={}, sizes={}, seconds=0)
    assert all_kinds([stats, stats, old]) == {"its jpg cannot be read": 4, "its txt is empty": 2}
    assert commonest({"a": 4, "b": 3, "c": 2, "d": 1}) == "a (4), b (3), c (2), others (1)"


def test_a_reason_is_one_short_line_that_parquet_can_hold():
    assert recorded("two\nlines  \udc80") == "two lines \\udc80"
    assert len(recorded("x" * 1000)) == 300
    assert recorded(f"malformed: {object()!r}.") == "malformed: an object."
