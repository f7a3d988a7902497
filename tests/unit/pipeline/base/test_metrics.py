"""What a run tells Prometheus through Ray, and where it tells it; without a Ray."""

from __future__ import annotations

import json

import pytest

from pipeline.attempts import Attempts
from pipeline.base import mapping, metrics
from pipeline.base.resources import Node
from pipeline.base.store import ArtifactStore
from pipeline.observe import Observer
from schemas.errors import ProcessLost
from schemas.records import ShardStats
from schemas.resources import WorkerPool
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config


@pytest.fixture
def told(monkeypatch) -> dict[tuple, float]:
    """The series that Ray would have, by name and tags."""
    series: dict[tuple, float] = {}

    class Metric:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, set(tag_keys)
            assert description

        def set(self, value: float, tags: dict[str, str], start: float = 0.0) -> None:
            assert set(tags) == self.keys
            series[(self.name, *tags.values())] = start + value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            self.set(value, tags, series.get((self.name, *tags.values()), 0.0))

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.metrics.Counter", Metric)
    monkeypatch.setattr("ray.util.metrics.Gauge", Metric)
    monkeypatch.setattr(metrics, "_made", {})
    return series


def test_shards_are_counted_as_they_are_made_and_not_again(told, tmp_path, monkeypatch):
    """Bug: count what was there before the run; then a resumed run looks as fast as light."""
    monkeypatch.setattr(mapping, "cluster_nodes", lambda: [Node({"CPU": 1})])
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = make_context("encode", config, store)

    def made(name: str) -> ShardStats:
        counts = {"ok": 3, "failed": 1, "bucket_32x32": 4}
        return ShardStats(shard=name, counts=counts, files={}, sizes={"a": 7, "b": 2}, seconds=2.5)

    mapping.map_shards(context, ["shards/0", "shards/1"], lambda: made, WorkerPool())
    assert told == {
        ("ladd_shards", "encode"): 2,
        ("ladd_bytes", "encode"): 18,
        ("ladd_shard_seconds", "encode"): 5,
        ("ladd_samples", "encode", "ok"): 6,
        ("ladd_samples", "encode", "failed"): 2,
    }


def test_progress_warnings_failures_and_retries_are_told(told, capsys):
    now = iter([0.0, 10.0])
    observer = Observer(clock=lambda: next(now))
    observer.progress("encode", "shards", 2, 10)
    observer.progress("encode", "shards", 6, 10)
    observer.warn("encode", "odd")
    observer.record("failed", stage="encode", error="lost")
    assert Attempts(1, observer).may_try_again("encode", ProcessLost("encode: gone"))
    metrics.put_training("distill", 7, {"student_loss": 0.5})
    assert told == {
        ("ladd_progress_done", "encode", "shards"): 6,
        ("ladd_progress_goal", "encode", "shards"): 10,
        ("ladd_seconds_left", "encode", "shards"): 10,
        ("ladd_warnings", "encode"): 2,
        ("ladd_failures", "encode"): 1,
        ("ladd_retries", "encode"): 1,
        ("ladd_update", "distill"): 7,
        ("ladd_training", "distill", "student_loss"): 0.5,
    }


def test_without_a_ray_nothing_is_told(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(metrics, "_made", {})
    metrics.count("ladd_shards", stage="encode")
    assert metrics._made == {}


def test_every_line_of_the_json_log_says_when_and_of_which_run(capsys):
    observer = Observer(log_format="json", run="20260101T000000-mine")
    observer.event("stage", name="encode", what="queued")
    observer.progress("encode", "shards", 1, 2)
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [row["event"] for row in rows] == ["stage", "progress"]
    assert all(row["run"] == "20260101T000000-mine" and row["time"] for row in rows)
    assert rows[1]["stage"] == "encode" and "time" not in rows[1]["unit"]
