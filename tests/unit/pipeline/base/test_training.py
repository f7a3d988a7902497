"""What training workers ask Ray for, and what becomes of what they raise, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.train import Checkpoint, TrainingFailedError, WorkerGroupError

from pipeline.base import training
from pipeline.base.checkpoint_list import list_checkpoints
from pipeline.base.course import Course, Keeping, Work
from pipeline.base.lease import Lease
from pipeline.base.resources import Node, Request
from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from pipeline.base.training import TrainingPlan, TrainingRun, worker_share
from schemas.errors import (
    ArtifactError,
    ConfigError,
    ProcessLost,
    ServiceUnavailable,
    StageFailed,
)
from schemas.resources import Placement
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config


def plan_for(workers: int, **changes) -> TrainingPlan:
    nothing_set = dict.fromkeys(("min_workers", "cpus_per_worker", "use_gpu"))
    return TrainingPlan(
        **nothing_set
        | {"workers": workers, "retries": 0, "keeping": Keeping(1, None), "micro_batch": 4}
        | {"placement": Placement()}
        | changes
    )


def lease_of(context: StageContext) -> Lease:
    return Lease(context.store, f"{context.training_folder}/lease.json", context.stage, "mine")


HEAD, GPU_NODE = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("workers", "changes", "nodes", "share"),
    [
        (1, {}, [{"CPU": 2.0}], Request(2)),
        (2, {}, [{"CPU": 2.0}], Request(1)),
        (3, {}, [{"CPU": 8.0}, {"CPU": 8.0}], Request(4)),
        # Bug: share out the head's CPUs too; 16 beside a GPU are on no node.
        (2, {}, [HEAD, GPU_NODE, GPU_NODE], Request(8, 1)),
        # Bug: take GPUs only where there is one for each worker at this moment.
        (8, {"min_workers": 4}, [HEAD, *[GPU_NODE] * 7], Request(8, 1)),
        (2, {"use_gpu": False}, [HEAD, GPU_NODE, GPU_NODE], Request(8)),
        (2, {"cpus_per_worker": 3}, [HEAD], Request(3)),
        (2, {}, [{"CPU": 1.0}], Request(1)),
        # Bug: ask for what the head has, or for one CPU, until the last GPU node is there.
        (2, {"use_gpu": True}, [HEAD], Request(1, 1)),
        (2, {}, [HEAD, GPU_NODE], Request(8, 1)),
        (4, {"min_workers": 2}, [{"CPU": 3.0}], Request(1)),
        # Bug: take the whole node; then trials of a sweep wait for each other beside idle GPUs.
        (1, {}, [HEAD, {"CPU": 64.0, "GPU": 8.0}], Request(8, 1)),
    ],
)
def test_a_worker_asks_for_what_nodes_have(workers, changes, nodes, share):
    assert worker_share(plan_for(workers, **changes), [*map(Node, nodes)]) == share


def test_parts_of_a_cpu_fit_as_often_as_they_go_into_it():
    """Bug: count with `//`; 1 // 0.1 is 9."""
    assert Request(0.1).room([Node({"CPU": 1.0}), Node({"CPU": 0.35})]) == 13


@pytest.mark.parametrize(
    ("min_workers", "grows", "count"),
    [(None, False, 4), (None, True, 4), (2, True, (2, 4)), (4, True, 4), (2, False, 3)],
)
def test_a_machine_that_never_grows_gets_as_many_workers_as_fit(min_workers, grows, count):
    """Bug: let Ray Train wait for nodes that cannot join."""
    plan, nodes = plan_for(4, min_workers=min_workers), [Node({"CPU": 3.0})]
    assert training.worker_count(plan, Request(1), nodes, grows=grows) == count


@pytest.mark.parametrize(("share", "devices"), [(Request(3), 6), (Request(3, 1), 2)])
def test_device_hours_are_those_of_all_starts(share, devices, tmp_path, monkeypatch):
    """Bug: take the time of the last start alone."""
    place = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 2)
    reported = []
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = make_context("distill", config, store)

    def report(metrics, *, checkpoint, checkpoint_dir_name, **_):
        where = Path(store.path(context.training_folder, checkpoint_dir_name))
        shutil.copytree(checkpoint.path, where)
        reported.append(SimpleNamespace(checkpoint=Checkpoint.from_directory(where)))
        list_checkpoints(store, context.training_folder, [checkpoint_dir_name])

    monkeypatch.setattr("ray.train.get_context", lambda: place)
    monkeypatch.setattr("ray.train.report", report)
    # Asked without a Ray, it would start one.
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: None)
    monkeypatch.setattr("ray.train.get_all_reported_checkpoints", lambda: reported)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(training, "time", clock)
    for start, micro_batch in enumerate((4, 2)):
        clock.monotonic = lambda now=36_000.0 * start: now
        plan = plan_for(2, micro_batch=micro_batch)
        run = TrainingRun(context, share, lease_of(context), plan, Course(9, 9))
        folders = [*run.checkpoint_folders()]
        assert len(folders) == start
        for number, seconds in enumerate((1800.0, 3600.0), 1):
            clock.monotonic = lambda now=36_000.0 * start + seconds: now
            run.save({}, lambda folder: None, 2 * start + number)
    last = Path(reported[-1].checkpoint.path)
    work = Work.read(last)
    assert last.name == "checkpoint_000000004"
    assert work.device_hours == pytest.approx(2 * devices)
    assert work.micro_batch == ((0, 4), (2, 2))


def test_workers_that_never_fit_on_this_machine_are_refused(tmp_path, monkeypatch):
    def context(address: str | None) -> StageContext:
        config = make_tiny_config(tmp_path, tmp_path / "store", ray={"address": address})
        return make_context("distill", config, ArtifactStore(str(tmp_path)), warn=warnings.append)

    warnings: list[str] = []
    nodes = [{"Alive": True, "Resources": GPU_NODE}, {"Alive": False, "Resources": GPU_NODE}]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    with pytest.raises(ConfigError, match="2 workers, each with 8 CPUs and a GPU, do not fit"):
        training._own_share(context(None), plan_for(2))
    assert training._own_share(context(None), plan_for(2, min_workers=1)).gpus
    assert not warnings
    assert training._own_share(context("auto"), plan_for(2)).gpus
    assert warnings == [
        "the cluster has room for 1 of 2 workers, each with 8 CPUs and a GPU; waiting"
    ]
    warnings.clear()
    nodes[:] = [{"Alive": True, "Resources": HEAD}]
    assert not training._own_share(context(None), plan_for(2)).gpus and not warnings
    assert not training._own_share(context("auto"), plan_for(2)).gpus
    assert "no GPU" in warnings[0] and len(warnings) == 1
    assert training._own_share(context("auto"), plan_for(2, use_gpu=True)).gpus
    assert warnings[1:] == [
        "the cluster has room for 0 of 2 workers, each with 1 CPU and a GPU; waiting"
    ]


def test_workers_are_placed_on_the_nodes_that_they_ask_for(tmp_path, monkeypatch):
    """Bug: share out the CPUs of nodes that may not be used."""
    h100 = {"ray.io/accelerator-type": "H100"}
    nodes = [
        Node({"CPU": 64.0, "GPU": 8.0, "memory": 4e11}, {"ray.io/accelerator-type": "L4"}),
        Node({"CPU": 12.0, "GPU": 1.0, "memory": 1e11}, h100),
    ]
    plan = plan_for(2, placement=Placement(accelerator="H100", memory_gb=60))
    share = worker_share(plan, nodes)
    assert share == Request(12, 1, 60 * 10**9, h100) and share.room(nodes) == 1
    assert share.bundle() == {"CPU": 12, "GPU": 1, "memory": 60e9}
    monkeypatch.setattr(training, "cluster_nodes", lambda: nodes)
    warnings = []
    for address in (None, "auto"):
        config = make_tiny_config(tmp_path, tmp_path / "store", ray={"address": address})
        context = make_context(
            "distill", config, ArtifactStore(str(tmp_path)), warn=warnings.append
        )
        placed = training._own_share(context, plan)
        assert dict(placed.labels) == (h100 if address else {})
    (text,) = warnings
    assert text == (
        "the cluster has room for 1 of 2 workers, each with 12 CPUs, a GPU and 60 GB of memory, "
        "with accelerator-type H100; waiting"
    )


def test_what_may_pass_is_left_to_ray_train(loop, tmp_path):
    """Bug: leave a verdict; then a store that was away for a moment ends the training for good."""
    arguments, _, _ = loop

    def work(run):
        raise ServiceUnavailable("SlowDown")

    with pytest.raises(ServiceUnavailable):
        training._entry(arguments | {"worker": work})
    assert training._failure(arguments["context"], arguments["lease"]) is None


class Controller(TrainingFailedError):
    """Ray's own makes itself of what has failed."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("Training failed due to controller error:\npage")
        self.controller_failure = failure


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ActorDiedError(), ProcessLost, "distill: the controller of the training was lost"),
        (Controller(ActorDiedError()), ProcessLost, "the controller of the training was lost"),
        # Ray Train has tried these as often as `distill.retries` allows.
        (WorkerGroupError("page", {0: ActorDiedError()}), StageFailed, "was killed or crashed"),
        (
            WorkerGroupError("page", {1: KeyError("x")}),
            StageFailed,
            "training failed: KeyError: 'x'",
        ),
        (WorkerGroupError("page", {0: ArtifactError("latents gone")}), StageFailed, "latents gone"),
        (Controller(ValueError("bad\nbad")), StageFailed, "failed: ValueError: bad"),
    ],
)
def test_a_lost_controller_is_told_from_a_failed_worker(error, kind, text, tmp_path):
    """Bug: end the run with Ray's page, although all is saved and the stage can be tried again."""
    context = make_context("distill", make_tiny_config(tmp_path, tmp_path), ArtifactStore("x"))
    found = training._ended(context, error)
    assert type(found) is kind and text in str(found) and "\n" not in str(found)


@pytest.fixture
def loop(tmp_path, monkeypatch):
    """What Ray Train hands to each worker, and the number of workers."""
    world = SimpleNamespace(world=2)
    monkeypatch.setattr(training, "TrainingRun", lambda *arguments: world)
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(tmp_path, tmp_path / "store")
    context = make_context("distill", config, store)
    calls = []

    def work(run):
        calls.append(run)
        raise ArtifactError("a latent file is damaged")

    arguments = {"worker": work, "share": Request(1)}
    arguments |= {"context": context, "cwd": "/none", "lease": lease_of(context)}
    arguments |= {"plan": plan_for(2), "course": Course(9, 9)}
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
    failure = training._failure(arguments["context"], arguments["lease"])
    assert isinstance(failure, ArtifactError) and "latent file" in str(failure)


def test_a_worker_alone_ends_without_a_new_start(loop):
    arguments, world, _ = loop
    world.world = 1
    training._entry(arguments)
    assert isinstance(training._failure(arguments["context"], arguments["lease"]), ArtifactError)
