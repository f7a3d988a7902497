"""What workers say when they fail, and what becomes of it on the head, without Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import mapping, training
from pipeline.base.mapping import _Adapter
from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from pipeline.base.training import Share, TrainingPlan, TrainingRun, worker_share
from schemas.config import WorkerPool
from schemas.errors import (
    ArtifactError,
    ConfigError,
    GateFailed,
    LaddError,
    Locked,
    ServiceUnavailable,
    StageFailed,
    dump_error,
    load_error,
)
from schemas.records import ShardStats
from tests.conftest import make_tiny_config, map_in_this_process


@pytest.mark.parametrize(
    "kind",
    [StageFailed, ConfigError, ArtifactError, ServiceUnavailable, Locked, GateFailed, LaddError],
)
def test_an_error_keeps_its_kind_and_exit_code_on_its_way(kind):
    error = load_error(dump_error(kind("the sentence")))
    assert type(error) is kind and str(error) == "the sentence"
    assert error.exit_code == kind.exit_code


def plan_for(workers: int, **changes) -> TrainingPlan:
    nothing_set = dict.fromkeys(("min_workers", "cpus_per_worker", "use_gpu"))
    return TrainingPlan(
        **nothing_set | {"workers": workers, "retries": 0, "checkpoints_kept": 1} | changes
    )


HEAD, GPU_NODE = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("workers", "changes", "nodes", "share"),
    [
        (1, {}, [{"CPU": 2.0}], Share(2, False)),
        (2, {}, [{"CPU": 2.0}], Share(1, False)),
        (3, {}, [{"CPU": 8.0}, {"CPU": 8.0}], Share(4, False)),
        # Bug: share out the head's CPUs too; 16 beside a GPU are on no node.
        (2, {}, [HEAD, GPU_NODE, GPU_NODE], Share(8, True)),
        # Bug: take GPUs only where there is one for each worker at this moment.
        (8, {"min_workers": 4}, [HEAD, *[GPU_NODE] * 7], Share(8, True)),
        (2, {"use_gpu": False}, [HEAD, GPU_NODE, GPU_NODE], Share(8, False)),
        (2, {"cpus_per_worker": 3}, [HEAD], Share(3, False)),
        (2, {}, [{"CPU": 1.0}], Share(1, False)),
        # Bug: ask for what the head has, or for one CPU, until the last GPU node is there.
        (2, {"use_gpu": True}, [HEAD], Share(1, True)),
        (2, {}, [HEAD, GPU_NODE], Share(8, True)),
        (4, {"min_workers": 2}, [{"CPU": 3.0}], Share(1, False)),
        # Bug: take the whole node; then trials of a sweep wait for each other beside idle GPUs.
        (1, {}, [HEAD, {"CPU": 64.0, "GPU": 8.0}], Share(8, True)),
    ],
)
def test_a_worker_asks_for_what_nodes_have(workers, changes, nodes, share):
    assert worker_share(plan_for(workers, **changes), nodes) == share


def test_parts_of_a_cpu_fit_as_often_as_they_go_into_it():
    """Bug: count with `//`; 1 // 0.1 is 9."""
    assert Share(0.1, False).room([{"CPU": 1.0}, {"CPU": 0.35}]) == 13


@pytest.mark.parametrize(("share", "devices"), [(Share(3, False), 6), (Share(3, True), 2)])
def test_device_hours_are_those_of_all_starts(share, devices, tmp_path, monkeypatch):
    """Bug: take the time of the last start alone."""
    place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 2)
    monkeypatch.setattr("ray.train.get_context", lambda: place)
    monkeypatch.setattr("ray.train.report", lambda metrics, **checkpoint: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(training, "time", clock)
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = StageContext("distill", "k", config, store, {}, lambda *_: None)
    for begins in (0.0, 36_000.0):
        clock.monotonic = lambda now=begins: now
        run = TrainingRun(context, share)
        for seconds in (1800.0, 3600.0):
            clock.monotonic = lambda now=begins + seconds: now
            run.save({}, lambda folder: None)
    assert training._device_hours(context) == pytest.approx(2 * devices)


def test_workers_that_never_fit_on_this_machine_are_refused(tmp_path, monkeypatch):
    def context(address: str | None) -> StageContext:
        config = make_tiny_config(tmp_path, tmp_path / "store", ray={"address": address})
        return StageContext("distill", "k", config, ArtifactStore(str(tmp_path)), {}, said)

    def said(text, done, total):
        warnings.append(text)

    warnings: list[str] = []
    nodes = [{"Alive": True, "Resources": GPU_NODE}, {"Alive": False, "Resources": GPU_NODE}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    with pytest.raises(ConfigError, match="2 workers with 8 CPUs and a GPU each do not fit"):
        training._own_share(context(None), plan_for(2))
    assert training._own_share(context(None), plan_for(2, min_workers=1)).gpu
    assert not warnings
    assert training._own_share(context("auto"), plan_for(2)).gpu
    assert warnings == [
        "warning: the cluster has room for 1 of 2 workers with 8 CPUs and a GPU each; waiting"
    ]
    warnings.clear()
    nodes[:] = [{"Alive": True, "Resources": HEAD}]
    assert not training._own_share(context(None), plan_for(2)).gpu and not warnings
    assert not training._own_share(context("auto"), plan_for(2)).gpu
    assert "no GPU" in warnings[0] and len(warnings) == 1
    assert training._own_share(context("auto"), plan_for(2, use_gpu=True)).gpu
    assert warnings[1:] == [
        "warning: the cluster has room for 0 of 2 workers with 1 CPU and a GPU each; waiting"
    ]


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
    context = StageContext("encode", "k", config, store, {}, lambda *made: reported.append(made))
    found = mapping.map_shards(context, names, lambda: empty_shard, WorkerPool(**pool))
    assert list(found) == names and started == [actors] * (actors is not None)
    warned = [made for made in reported if made[0].startswith("warning")]
    assert [made for made in reported if made not in warned] == [("shards", n, 3) for n in range(4)]
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


def test_what_may_pass_is_left_to_ray_train(loop, tmp_path):
    """Bug: leave a verdict; then a store that was away for a moment ends the training for good."""
    arguments, _, _ = loop

    def work(run, settings):
        raise ServiceUnavailable("SlowDown")

    with pytest.raises(ServiceUnavailable):
        training._entry(arguments | {"worker": work})
    assert training._failure(arguments["context"]) is None


def empty_shard(name: str) -> ShardStats:
    return ShardStats(shard=name, counts={}, files={}, sizes={}, seconds=0)


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """What Ray Train hands to each worker, and the number of workers."""
    world = SimpleNamespace(world=2)
    monkeypatch.setattr(training, "TrainingRun", lambda context, share: world)
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = StageContext("distill", "k", config, store, {}, lambda *_: None)
    calls = []

    def work(run, settings):
        calls.append(run)
        raise ArtifactError("a latent file is damaged")

    arguments = {"worker": work, "settings": {}, "share": Share(1, False)}
    arguments |= {"context": context, "cwd": "/none"}
    return arguments, world, calls


def test_others_do_not_wait_for_a_worker_that_failed_and_none_tries_again(loop):
    """Bug: return after the failure; then the other ranks wait in a collective until it times
    out.
    """
    arguments, _, calls = loop
    with pytest.raises(ArtifactError):
        training._entry(arguments)
    training._entry(arguments)  # Ray Train starts all of them again
    assert len(calls) == 1
    failure = training._failure(arguments["context"])
    assert isinstance(failure, ArtifactError) and "latent file" in str(failure)


def test_a_worker_alone_ends_without_a_new_start(loop):
    arguments, world, _ = loop
    world.world = 1
    training._entry(arguments)
    assert isinstance(training._failure(arguments["context"]), ArtifactError)
