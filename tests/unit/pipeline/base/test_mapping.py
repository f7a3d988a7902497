"""Where the workers of a stage live, and what becomes of what they raise, without Ray."""

from __future__ import annotations

import pytest
import ray

from pipeline.base import mapping
from pipeline.base.mapping import _Adapter
from pipeline.base.resources import Node, Request
from pipeline.base.store import ArtifactStore
from schemas.errors import (
    ArtifactError,
    ConfigError,
    ProcessLost,
    ServiceUnavailable,
    load_error,
)
from schemas.records import ShardStats
from schemas.resources import WorkerPool
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config


def refuse(*_: object):
    raise ArtifactError("weights are damaged")


@pytest.mark.parametrize("build", [refuse, lambda: refuse])
def test_a_worker_that_cannot_be_built_or_cannot_go_on_says_so(build):
    """Bug: catch the error in `__call__` alone; then Ray reports a crashed actor."""
    actor = _Adapter(build, "/none").actor_type()()
    answer = actor({"shard": ["shards/0"]})
    error = load_error(answer["error"][0])
    assert type(error) is ArtifactError and str(error) == "weights are damaged"


@pytest.mark.parametrize(
    ("where", "address", "pool", "actors"),
    [
        ({"CPU": 1}, None, {}, None),
        ({"CPU": 4}, None, {}, (3, 3)),
        ({"CPU": 1, "GPU": 1}, None, {}, (1, 1)),
        # Bug: take what a cluster has at this moment for all that it will have; or work on its
        # head, whose node has neither CPUs nor memory for it.
        ({"CPU": 0}, "auto", {}, (1, 3)),
        ({"CPU": 0}, "auto", {"gpus_per_worker": 1}, (1, 3)),
        ({"CPU": 1}, "auto", {"workers": 1}, (1, 1)),
        ({"CPU": 2}, "auto", {"min_workers": 1}, (1, 3)),
        ({"CPU": 2}, "auto", {"workers": 2, "min_workers": 9}, (2, 2)),
    ],
)
def test_one_cpu_worker_on_one_machine_is_this_process(
    where, address, pool, actors, tmp_path, monkeypatch
):
    """A GPU, a cluster or more workers call for actors, and never more than there are shards."""
    monkeypatch.setattr(mapping, "cluster_nodes", lambda: [Node(where)])
    started = []

    def by_actors(shards, build, pool, sizes, request):
        started.append(sizes)
        return map(build(), shards)

    monkeypatch.setattr(mapping, "_by_actors", by_actors)
    names = ["shards/0", "shards/1", "shards/2"]
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store", ray={"address": address})
    reported: list[tuple] = []
    warned: list[str] = []
    context = make_context(
        "encode",
        config,
        store,
        report=lambda *made: reported.append(made),
        warn=warned.append,
    )
    found = mapping.map_shards(context, names, lambda: empty_shard, WorkerPool(**pool))
    assert list(found) == names and started == [actors] * (actors is not None)
    assert reported == [("shards", n, 3) for n in range(4)]
    assert any("no GPU" in text for text in warned) == (
        address is not None and "gpus_per_worker" not in pool
    )
    assert any("no node has room" in text for text in warned) == (where == {"CPU": 0})


def test_a_worker_that_never_fits_on_this_machine_is_refused(tmp_path, monkeypatch):
    """Bug: ask Ray for a GPU that this machine has not; the stage waits for ever."""
    monkeypatch.setattr(mapping, "cluster_nodes", lambda: [Node({"CPU": 4})])
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = make_context("encode", config, ArtifactStore(str(tmp_path / "store")))
    with pytest.raises(ConfigError, match=r"encode\.pool: a worker with a GPU does not fit"):
        mapping.map_shards(context, ["s"], lambda: empty_shard, WorkerPool(gpus_per_worker=1))


def test_a_placement_is_for_clusters(tmp_path, monkeypatch):
    """One file serves the laptop, which has no spot nodes, and the cluster."""
    asked = []

    def by_actors(shards, build, pool, sizes, request):
        asked.append(request)
        return map(build(), shards)

    monkeypatch.setattr(mapping, "_by_actors", by_actors)
    monkeypatch.setattr(mapping, "cluster_nodes", lambda: [Node({"CPU": 4})])
    pool = WorkerPool(workers=2, placement={"market": "spot", "memory_gb": 16, "accelerator": "L4"})
    for address in (None, "auto"):
        store = tmp_path / str(address)
        config = make_tiny_config(tmp_path, store, ray={"address": address})
        context = make_context("encode", config, ArtifactStore(str(store)))
        mapping.map_shards(context, ["s/0", "s/1"], lambda: empty_shard, pool)
    labels = {"ray.io/accelerator-type": "L4", "ray.io/market-type": "spot"}
    assert asked == [Request(1), Request(1, 0, 16 * 10**9, labels)]


@pytest.mark.parametrize(("silent", "made"), [(2, True), (3, False)])
def test_a_store_that_does_not_answer_is_asked_again(silent, made, monkeypatch):
    """Building a worker loads models from a hub, so both are tried."""
    pauses: list[float] = []
    monkeypatch.setattr(mapping.time, "sleep", pauses.append)

    def flaky(result):
        answers = iter([ServiceUnavailable("SlowDown")] * silent + [result])

        def work(*_):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return work

    build = mapping._Persistent(flaky(flaky(empty_shard("shards/0"))), retries=2)
    if made:
        assert build()("shards/0") == empty_shard("shards/0")
        assert pauses == [10, 20, 10, 20]
    else:
        with pytest.raises(ServiceUnavailable):
            build()


def empty_shard(name: str) -> ShardStats:
    return ShardStats(shard=name, counts={}, files={}, sizes={}, seconds=0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ray.exceptions.ActorDiedError(), ProcessLost),
        (ray.exceptions.RayTaskError("map", "page", KeyError("x")), ray.exceptions.RayTaskError),
    ],
)
def test_lost_workers_are_told_from_workers_that_failed(error, expected, monkeypatch):
    """What is lost is tried again, with the stage; what failed would fail again."""

    class Data:
        def map_batches(self, *_: object, **__: object) -> Data:
            return self

        def iter_rows(self):
            raise error

    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: Data())
    with pytest.raises(expected):
        list(mapping._by_actors(["shards/0"], lambda: empty_shard, WorkerPool(), (1, 1), Request()))
