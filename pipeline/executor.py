"""Runs a plan: walks the bound Ray DAG, submits each stage as a Ray task, and reports what happens.

The only module that uses Ray's DAG nodes. Stage tasks are coordinators that reserve no CPU; they
run on the node where the command runs, which in a Ray job is the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.base.store import Artifact, ArtifactStore, to_json
from pipeline.board import ProgressBoard
from pipeline.cluster import ray_cluster
from pipeline.dag import declare
from pipeline.observe import Observer
from pipeline.planning import PlannedStage, Selection, check_inputs, make_plan, rows_of
from pipeline.stage_task import Job, run_stage
from schemas.config import PipelineConfig
from schemas.errors import LaddError, StageFailed


def execute(
    config: PipelineConfig, store: ArtifactStore, plan: list[PlannedStage], observer: Observer
) -> list[dict[str, Any]]:
    """Run a plan; return one row per stage: name, action, key, counts, seconds. Raises the first
    failure.

    Starts nothing if there is nothing to run.
    """
    running = [stage for stage in plan if stage.action == "run"]
    rows = rows_of(plan)
    if not running:
        return list(rows.values())
    check_inputs(config, running)
    # Write now, so that a store without write access fails before an hour of work, not after it.
    for limit in store.limits():
        observer.warn("store", limit)
    started = datetime.now(UTC)
    record = f"runs/{started:%Y%m%dT%H%M%S.%f}-{config.name}"
    summary = {
        "started": started.isoformat(),
        "command": sys.argv[1:],
        "config": config.model_dump(mode="json"),
    }
    store.write(f"{record}/run.json", to_json(summary | {"status": "running"}))
    job = Job(
        config=config,
        store=store,
        keys={s.name: s.key for s in plan},
        inputs={s.name: s.inputs for s in plan},
        outside={s.name: s.outside for s in plan},
        running=frozenset(s.name for s in running),
        forced=frozenset(s.name for s in running if s.why == "forced"),
        cwd=os.getcwd(),
    )
    status = "failed"
    try:
        with ray_cluster(config):
            for outcome in _walk(job, observer):
                rows[outcome["stage"]] |= outcome
        status = "done"
    except StageFailed as error:
        if any(event["event"] == "failed" for event in observer.events):
            error.add_note(f"its traceback is in {store.url}/{record}/events.jsonl")
        raise
    finally:
        done = {
            "status": status,
            "ended": datetime.now(UTC).isoformat(),
            "stages": list(rows.values()),
        }
        store.write(f"{record}/run.json", to_json(summary | done))
        store.write(f"{record}/events.jsonl", b"".join(to_line(event) for event in observer.events))
    return list(rows.values())


def make(
    selection: Selection,
    stage: str,
    config: PipelineConfig,
    store: ArtifactStore,
    observer: Observer,
) -> Artifact:
    """Plan and run the selection, and return the artifact of `stage`. Raises the first failure."""
    plan = make_plan(config, store, selection)
    execute(config, store, plan, observer)
    artifact = store.find(stage, next(s.key for s in plan if s.name == stage))
    assert artifact is not None
    return artifact


def to_line(event: dict[str, Any]) -> bytes:
    return (json.dumps(event) + "\n").encode()


def _walk(job: Job, observer: Observer) -> Iterator[dict[str, Any]]:
    """Submit the bound nodes in order, with upstream results as top-level arguments; yield each
    stage's outcome.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node: Any = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=this_node)(ProgressBoard).remote()
    stage_task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=this_node)(run_stage)
    nodes = declare(
        lambda name: _Bound(stage_task.options(name=name), name, job, board), job.config
    )
    references: dict[str, Any] = {}
    for name, node in nodes.items():
        if name not in job.running:
            references[node.get_stable_uuid()] = {"stage": name}
            continue
        arguments = [
            references[a.get_stable_uuid()] if hasattr(a, "get_stable_uuid") else a
            for a in node.get_args()
        ]
        references[node.get_stable_uuid()] = stage_task.options(
            **_submittable(node.get_options())
        ).remote(*arguments)
        observer.event("stage", name=name, key=job.keys[name], what="queued")
    pending = {
        references[nodes[name].get_stable_uuid()]: name for name in nodes if name in job.running
    }
    while pending:
        ready, _ = ray.wait(list(pending), timeout=0.5)
        with contextlib.suppress(ray.exceptions.RayActorError):  # progress must not fail a run
            warnings, progress = ray.get(board.drain.remote())
            for warning in warnings:
                observer.warn(*warning)
            for row in progress:
                observer.progress(*row)
        for reference in ready:
            name = pending.pop(reference)
            try:
                outcome = ray.get(reference)
            except LaddError as error:
                observer.record("failed", stage=name, error=str(error))
                raise _original(error) from None
            except ray.exceptions.RayError as error:
                observer.record("failed", stage=name, error=str(error))
                raise StageFailed(f"{name} failed unexpectedly: {_last_line(error)}") from error
            observer.event("done", stage=name, seconds=f"{outcome['seconds']:.0f} s")
            yield outcome


@dataclass
class _Bound:
    """Gives `declare` a `.bind()` that puts the task's own arguments before the upstream nodes."""

    task: Any
    name: str
    job: Job
    board: Any

    def bind(self, *upstream: Any) -> Any:
        return self.task.bind(self.name, self.job, self.board, *upstream)


def _submittable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("name",) if name in options}


def _original(error: LaddError) -> LaddError:
    """Unwrap a task's error: Ray wraps it in a class that it makes on the fly."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LaddError) else error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
