"""Which workers the stages of a run ask Ray for, and the groups of nodes that have room for them.

The requests come from the functions that the executor uses (`pipeline.base.resources`,
`pipeline.base.training.worker_share`), so what is rendered and what is asked for cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.base.resources import ACCELERATOR, MARKET, Node, Request, pool_request
from pipeline.base.training import TrainingPlan, worker_share
from schemas.config import PipelineConfig
from schemas.errors import ConfigError
from schemas.kubernetes import KubernetesConfig, WorkerGroup

_POOLS = {name: name for name in ("synthesize", "encode", "pairs", "eval")} | {"dpo": "pairs"}
"""The section of the pool that a stage maps shards with; `dpo` chooses its scale with that of
`pairs`.
"""
_TRAININGS = ("distill", "dpo")
_MOST_TOGETHER = 8
"""GPUs of the largest machines."""


@dataclass(frozen=True)
class Need:
    """The workers that a stage asks Ray for."""

    stage: str
    field: str
    """Where the configuration says it."""
    request: Request
    """What each worker asks for."""
    least: int
    """Workers without which the stage does not go on."""
    most: int | None
    """The most workers; None takes as many as there is room for."""
    together: int = 1
    """Workers that share one copy of the weights, so that they belong on one node."""


def settled(config: PipelineConfig) -> PipelineConfig:
    """Return the configuration as it runs on Kubernetes: on the cluster of its job, and with the
    devices of each stage said, because no node is up yet that could be looked at.
    """
    kubernetes = config.kubernetes
    changes: dict[str, object] = {"ray": config.ray.model_copy(update={"address": "auto"})}
    for name in set(_POOLS.values()):
        section = getattr(config, name)
        if section.pool.gpus_per_worker is None:
            pool = {"gpus_per_worker": float(kubernetes.use_gpus)}
            changes[name] = section.model_copy(
                update={"pool": section.pool.model_copy(update=pool)}
            )
    for name in _TRAININGS:
        section = getattr(config, name)
        use_gpu = kubernetes.use_gpus if section.use_gpu is None else section.use_gpu
        section = section.model_copy(update={"use_gpu": use_gpu})
        if section.cpus_per_worker is None:
            cpus = _cpus_of_worker(kubernetes, TrainingPlan.of(section), use_gpu)
            section = section.model_copy(update={"cpus_per_worker": cpus})
        changes[name] = section
    return config.model_copy(update=changes)


def _cpus_of_worker(kubernetes: KubernetesConfig, plan: TrainingPlan, use_gpu: bool) -> float:
    if kubernetes.groups:
        nodes = [node_of(group) for group in kubernetes.groups for _ in range(group.max_nodes)]
        return worker_share(plan, nodes).cpus
    return kubernetes.cpus_per_gpu if use_gpu else kubernetes.cpus_per_node


def needs_of(config: PipelineConfig, stages: Iterable[str]) -> list[Need]:
    """Return what each of some stages of a `settled` configuration asks for."""
    found = []
    for stage in stages:
        if stage in _TRAININGS:
            plan = TrainingPlan.of(getattr(config, stage))
            together = getattr(getattr(config, stage), "shard_over", 1)
            least = plan.min_workers or plan.workers
            request = worker_share(plan, [])
            found.append(Need(stage, stage, request, least, plan.workers, together))
        if stage in _POOLS:
            section = _POOLS[stage]
            pool = getattr(config, section).pool
            request, field = pool_request(pool, []), f"{section}.pool"
            found.append(Need(stage, field, request, pool.min_workers or 1, pool.workers or None))
    return found


def groups_for(config: PipelineConfig, needs: Sequence[Need]) -> list[WorkerGroup]:
    """Return the configured groups, or else one for each kind of node that is needed."""
    if config.kubernetes.groups:
        return list(config.kubernetes.groups)
    kinds: dict[tuple[bool, str | None, str | None], list[Need]] = {}
    for need in needs:
        labels = need.request.labels
        kind = (need.request.gpus > 0, labels.get(ACCELERATOR), labels.get(MARKET))
        kinds.setdefault(kind, []).append(need)
    order = sorted(kinds, key=lambda kind: (not kind[0], kind[1] or "", kind[2] or ""))
    return [_made(config.kubernetes, kind, kinds[kind]) for kind in order]


def _made(
    kubernetes: KubernetesConfig, kind: tuple[bool, str | None, str | None], needs: Sequence[Need]
) -> WorkerGroup:
    """Make a group whose nodes have room for at least one worker of each need, and for all workers
    that share a copy of the weights.
    """
    has_gpu, accelerator, market = kind
    # Workers of one need that are on one node.
    beside = [min(need.together, _MOST_TOGETHER) for need in needs]
    gpus = max(math.ceil(n.request.gpus) * b for n, b in zip(needs, beside, strict=True))
    cpus = max(math.ceil(n.request.cpus * b) for n, b in zip(needs, beside, strict=True))
    cpus = max(cpus, gpus * kubernetes.cpus_per_gpu if has_gpu else kubernetes.cpus_per_node)
    least = max(n.request.memory / 1e9 * b for n, b in zip(needs, beside, strict=True))
    usual = gpus * kubernetes.memory_gb_per_gpu if has_gpu else cpus * kubernetes.memory_gb_per_cpu
    words = ("gpu" if has_gpu else "cpu", accelerator, market)
    group = WorkerGroup(
        name="-".join(word.lower().replace("_", "-").replace(".", "-") for word in words if word),
        cpus=cpus,
        gpus=gpus,
        memory_gb=max(least, usual),
        accelerator=accelerator,
        market=market,
        node_selector=kubernetes.accelerators.get(accelerator or "", {}),
    )
    room = [need.request.room_on(node_of(group)) for need in needs]
    nodes = [
        math.ceil(max(need.most or kubernetes.max_workers, need.least) / each)
        for need, each in zip(needs, room, strict=True)
    ]
    return group.model_copy(update={"max_nodes": max(nodes)})


def node_of(group: WorkerGroup) -> Node:
    """Return what Ray sees of a node of a group."""
    has = {"CPU": group.cpus, "GPU": group.gpus, "memory": group.memory_gb * 1e9}
    return Node(has, labels_of(group))


def labels_of(group: WorkerGroup) -> dict[str, str]:
    """Return Ray's labels of a group's nodes."""
    labels = {ACCELERATOR: group.accelerator, MARKET: group.market}
    return {name: value for name, value in labels.items() if value is not None}


def require_room(needs: Iterable[Need], groups: Sequence[WorkerGroup]) -> None:
    """Raise ConfigError, naming the stage, for workers that no group of nodes ever has room for."""
    for need in needs:
        fitting = [group for group in groups if need.request.room_on(node_of(group))]
        if not fitting:
            have = "; ".join(f"{group.name} has {_has(group)}" for group in groups)
            raise ConfigError(
                f"{need.stage}: no group of nodes has room for a worker with {need.request} "
                f"({have}); change kubernetes.groups or {need.field}"
            )
        room = sum(need.request.room_on(node_of(group)) * group.max_nodes for group in fitting)
        if room < need.least:
            raise ConfigError(
                f"{need.stage}: the groups of nodes have room for {room} of {need.least} workers, "
                f"each with {need.request}; raise max_nodes of {fitting[0].name}, or lower the "
                f"workers of {need.field}"
            )


def _has(group: WorkerGroup) -> str:
    return str(Request(group.cpus, group.gpus, int(group.memory_gb * 1e9), labels_of(group)))
