"""What workers say when they fail, and what becomes of it on the head, without Ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import mapping, training
from pipeline.mapping import _Adapter
from pipeline.stage import StageContext
from pipeline.store import ArtifactStore
from schemas.config import WorkerPool
from schemas.errors import (
    ArtifactError,
    ConfigError,
    GateFailed,
    LaddError,
    StageFailed,
    dump_error,
    load_error,
)
from schemas.records import ShardStats
from tests.conftest import make_tiny_config, map_in_this_process


@pytest.mark.parametrize("kind", [StageFailed, ConfigError, ArtifactError, GateFailed, LaddError])
def test_an_error_keeps_its_kind_and_exit_code_on_its_way(kind):
    error = load_error(dump_error(kind("the sentence")))
    assert type(error) is kind and str(error) == "the sentence"
    assert error.exit_code == kind.exit_code


def refuse(*_: object):
    raise ArtifactError("weights are damaged")


@pytest.mark.parametrize("build", [refuse, lambda: refuse])
def test_a_worker_that_cannot_be_built_or_cannot_go_on_says_so(build):
    """Bug: catch the error in `__call__` alone; then Ray reports a crashed actor."""
    actor = _Adapter(build).actor_type()()
    answer = actor({"shard": ["shards/0"]})
    error = load_error(answer["error"][0])
    assert type(error) is ArtifactError and str(error) == "weights are damaged"


@pytest.mark.parametrize(
    ("where", "actors"),
    [
        ({}, 0),
        ({"_pool_size": lambda cpus, gpus: 4}, 3),
        ({"_one_machine": lambda: False}, 1),
        ({"_demand": lambda pool: (1.0, 1.0)}, 1),
    ],
)
def test_one_cpu_worker_on_one_machine_is_this_process(where, actors, tmp_path, monkeypatch):
    """A GPU, another machine or more workers call for actors, and never more than there are
    shards.
    """
    map_in_this_process(monkeypatch)
    for name, answer in where.items():
        monkeypatch.setattr(mapping, name, answer)
    started = []

    def by_actors(shards, build, pool, size, gpus):
        started.append(size)
        return map(build(), shards)

    monkeypatch.setattr(mapping, "_by_actors", by_actors)
    names = ["shards/0", "shards/1", "shards/2"]
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    reported: list[tuple] = []
    context = StageContext("encode", "k", config, store, {}, lambda *made: reported.append(made))
    found = mapping.map_shards(context, names, lambda: empty_shard, WorkerPool())
    assert list(found) == names and sum(started) == actors
    assert reported == [("shards", n, 3) for n in range(4)]


def empty_shard(name: str) -> ShardStats:
    return ShardStats(shard=name, counts={}, files={}, sizes={}, seconds=0)


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """What Ray Train hands to each worker, and the number of workers."""
    world = SimpleNamespace(world=2)
    monkeypatch.setattr(training, "TrainingRun", lambda cpus: world)
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = StageContext("distill", "k", config, store, {}, lambda *_: None)
    calls = []

    def work(run, settings):
        calls.append(run)
        raise ArtifactError("a latent file is damaged")

    arguments = {"worker": work, "settings": {}, "cpus": 1.0, "context": context, "cwd": "/none"}
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
