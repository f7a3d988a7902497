"""Runs a plan: walks the bound Ray DAG, submits each stage as a Ray task, and reports what happens.

The only module that uses Ray's DAG nodes. Stage tasks are coordinators that reserve no CPU; they
run on the node where the command runs, which in a Ray job is the head.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from pipeline.attempts import Attempts, StageLost
from pipeline.base import metrics
from pipeline.base.foreign import innermost, loss, page, sentence
from pipeline.base.lease import held
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.board import ProgressBoard, Shown
from pipeline.budget import Budget
from pipeline.cluster import ray_cluster, require_ray
from pipeline.dag import declare
from pipeline.estimates import Outlook
from pipeline.observe import Observer
from pipeline.planning import PlannedStage, Selection, make_plan, rows_of, used_by
from pipeline.preflight import require_ready, tell_of_cluster
from pipeline.rates import look_ahead
from pipeline.run_record import recorded
from pipeline.stage_task import Job, run_stage
from pipeline.tracing import traced
from schemas.addresses import public_content
from schemas.config import PipelineConfig
from schemas.errors import LaddError, ProcessLost, StageFailed


def execute(
    config: PipelineConfig,
    store: ArtifactStore,
    plan: list[PlannedStage],
    observer: Observer,
    repairs: Mapping[str, frozenset[str]] = MappingProxyType({}),
    max_cost: float | None = None,
) -> list[dict[str, Any]]:
    """Run a plan; return one row per stage: name, action, key, counts, seconds. Raises the first
    failure, and CostReached when the run has cost `max_cost`. Of the stages in `repairs` only these
    files are made again.

    Starts nothing if there is nothing to run.
    """
    rows, ahead = rows_of(plan), look_ahead(config, store, plan)
    if ahead is None:
        return list(rows.values())
    require_ready(config, store, plan, ahead, hub=partial(observer.note, "hub"))
    budget = Budget(max_cost, config.costs, ahead)
    # Write now, so that a store without write access fails before an hour of work, not after it.
    store.tell_limits(partial(observer.warn, "store"))
    started = datetime.now(UTC)
    observer.run = f"{started:%Y%m%dT%H%M%S.%f}-{config.name}"
    record = f"runs/{observer.run}"
    summary = _summary(config, store, plan, started)
    job = _job(config, store, plan, ahead, repairs)
    for name, expected in job.expected.items():
        rows[name]["expected"] = expected.seconds
    with (
        recorded(store, record, summary, observer, lambda: _spent(list(rows.values()), budget)),
        traced(config.traces, observer.run, observer.followers, partial(observer.warn, "traces")),
        held(store, record, "this run"),
    ):
        for outcome in _outcomes(job, observer, budget):
            rows[outcome["stage"]] |= outcome
            metrics.put("ladd_stage_seconds", outcome["seconds"], stage=outcome["stage"])
    return list(rows.values())


def _summary(
    config: PipelineConfig, store: ArtifactStore, plan: list[PlannedStage], started: datetime
) -> dict[str, Any]:
    """What the run's record says from its start on. `artifacts gc` leaves alone what it `uses`."""
    running = [stage for stage in plan if stage.action == "run"]
    return {
        "started": started.isoformat(),
        "command": public_content(sys.argv[1:]),
        "config": config.recorded(),
        "artifacts": {s.name: s.key for s in running},
        "trainings": {s.name: s.training for s in running if s.training},
        "uses": sorted("/".join(one) for one in used_by(config, store, plan)),
    }


def _spent(rows: list[dict[str, Any]], budget: Budget) -> dict[str, Any]:
    """What the run's record says at its end of its stages and their costs."""
    return {
        "stages": rows,
        "cost": {budget.currency: round(budget.spent, 4)} if budget.is_priced else {},
    }


def _job(
    config: PipelineConfig,
    store: ArtifactStore,
    plan: list[PlannedStage],
    ahead: Outlook,
    repairs: Mapping[str, frozenset[str]],
) -> Job:
    running = [stage for stage in plan if stage.action == "run"]
    return Job(
        config=config,
        store=store,
        keys={s.name: s.key for s in plan},
        trainings={s.name: s.training for s in plan},
        inputs={s.name: s.inputs for s in plan},
        accepted={s.name: s.accepted for s in plan},
        outside={s.name: s.outside for s in plan},
        running=frozenset(s.name for s in running),
        forced=frozenset(s.name for s in running if s.why == "forced"),
        repairs=dict(repairs),
        expected=ahead.expected(),
        cwd=os.getcwd(),
    )


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


def _outcomes(job: Job, observer: Observer, budget: Budget) -> Iterator[dict[str, Any]]:
    """Yield each stage's outcome. Starts Ray again, and goes on, if that of this machine dies."""
    retries = job.config.ray.stage_retries
    for attempt in range(retries + 1):
        try:
            with ray_cluster(job.config, partial(observer.warn, "ray")):
                try:
                    if attempt == 0:
                        tell_of_cluster(job.config, job.running, observer.warn)
                    for outcome in _walk(job, observer, budget):
                        yield outcome
                        job = replace(job, running=job.running - {outcome["stage"]})
                except Exception:
                    require_ray()  # without it, whatever was raised says little
                    raise
            return
        except ProcessLost as error:
            if attempt == retries or not _is_rays_own(error):
                raise
            observer.warn("ray", f"{error}; starting it again ({attempt + 1} of {retries})")


def _is_rays_own(error: ProcessLost) -> bool:
    """Whether Ray was lost with its cluster, which has ended since, and not a stage alone."""
    try:
        require_ray()
    except ProcessLost:
        return False  # the cluster of an outer block, which cannot be started again here
    return not isinstance(error, StageLost)


def _walk(job: Job, observer: Observer, budget: Budget) -> Iterator[dict[str, Any]]:
    """Submit the bound nodes whose upstream nodes are done, with their results as top-level
    arguments; yield each stage's outcome. A stage that loses a process is tried again.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node: Any = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board: Any = ray.remote(
        num_cpus=0, scheduling_strategy=this_node, max_restarts=-1, max_task_retries=3
    )(ProgressBoard).remote()
    stage_task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=this_node)(run_stage)
    nodes = declare(
        lambda name: _Bound(stage_task.options(name=name), name, job, board), job.config
    )
    shown = Shown(board, observer)
    attempts = Attempts(job.config.ray.stage_retries, observer)
    references: dict[str, Any] = {
        node.get_stable_uuid(): {"stage": name}
        for name, node in nodes.items()
        if name not in job.running
    }
    waiting = {name: node for name, node in nodes.items() if name in job.running}
    for name in waiting:
        observer.event("stage", name=name, key=job.keys[name], what="queued")
    pending: dict[Any, str] = {}
    while waiting or pending:
        for name, node in list(waiting.items()):
            upstream = [a.get_stable_uuid() for a in node.get_args() if _is_node(a)]
            if all(uuid in references for uuid in upstream):
                arguments = [
                    references[a.get_stable_uuid()] if _is_node(a) else a for a in node.get_args()
                ]
                options = _submittable(node.get_options())
                pending[stage_task.options(**options).remote(*arguments)] = name
                observer.started(name, job.keys[name])
                del waiting[name]
        budget.charge(pending.values())
        ready, _ = ray.wait(list(pending), timeout=0.5)
        require_ray()
        shown.update()
        for reference in ready:
            name = pending.pop(reference)
            outcome = _result(name, reference, observer, attempts)
            if outcome is None:
                waiting[name] = nodes[name]
                continue
            references[nodes[name].get_stable_uuid()] = reference
            observer.event("done", stage=name, seconds=f"{outcome['seconds']:.0f} s")
            yield outcome


def _result(
    name: str, reference: Any, observer: Observer, attempts: Attempts
) -> dict[str, Any] | None:
    """Return the outcome of a stage's task, or None if the stage is to be tried again. Raises what
    the stage has raised.
    """
    import ray

    try:
        outcome: dict[str, Any] = ray.get(reference)
        return outcome
    except LaddError as error:
        observer.record("failed", stage=name, error=str(error))
        original = _original(error)
        if attempts.may_try_again(name, original):
            return None
        raise original from None
    except ray.exceptions.RayError as error:
        observer.record("failed", stage=name, error=page(error))
        lost = loss(error)
        if lost and attempts.may_try_again(name, ProcessLost(f"{name}: {lost}")):
            return None
        unforeseen = innermost(error)
        raise StageFailed(f"{name} failed unexpectedly: {sentence(unforeseen)}") from error


def _is_node(argument: Any) -> bool:
    return hasattr(argument, "get_stable_uuid")


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
