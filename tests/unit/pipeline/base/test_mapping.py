"""Where the workers of a stage live, and what becomes of what they raise, without Ray."""

from __future__ import annotations

import pytest
import ray

from pipeline.base import mapping
from pipeline.base.mapping import _Adapter
from pipeline.base.store import ArtifactStore
from schemas.config import WorkerPool
from schemas.errors import (
    ArtifactError,
    ProcessLost,
    ServiceUnavailable,
    load_error,
)
from schemas.records import ShardStats
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.without_ray import map_in_this_process


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
        ({}, None, {}, None),
        ({"_pool_size": lambda cpus, gpus: 4}, None, {}, (3, 3)),
        ({"_demand": lambda pool: (1.0, 1.0)}, None, {}, (1, 1)),
        # Bug: take what a cluster has at this moment for all that it will have; or work on its
        # head, whose node has neither CPUs nor memory for it.
        ({}, "auto", {}, (1, 3)),
        ({}, "auto", {"gpus_per_worker": 1}, (1, 3)),
        ({}, "auto", {"workers": 1}, (1, 1)),
    ],
)
def test_one_cpu_worker_on_one_machine_is_this_process(
    where, address, pool, actors, tmp_path, monkeypatch
):
    """A GPU, a cluster or more workers call for actors, and never more than there are shards."""
    map_in_this_process(monkeypatch)
    for name, answer in where.items():
        monkeypatch.setattr(mapping, name, answer)
    started = []

    def by_actors(shards, build, pool, sizes, gpus):
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
    assert bool(warned) == (address is not None and "gpus_per_worker" not in pool)


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
        list(mapping._by_actors(["shards/0"], lambda: empty_shard, WorkerPool(), (1, 1), 0))
