"""What one worker asks Ray for, and how many such workers a node has room for.

The executor's pools and trainings ask so, and the worker groups of a Kubernetes cluster are made
and checked from the same requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.resources import Placement, WorkerPool

ACCELERATOR = "ray.io/accelerator-type"
MARKET = "ray.io/market-type"
"""Labels of Ray's nodes. Ray finds the accelerator by itself; KubeRay hands on those of a group."""


@dataclass(frozen=True)
class Node:
    """What a node of a cluster has: Ray's resources (memory in bytes) and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        return self.resources.get("GPU", 0) >= 1


@dataclass(frozen=True)
class Request:
    """What one worker asks Ray for. A worker without CPUs and GPUs fits everywhere."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory: int = 0
    """Bytes; 0 asks for none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that its node must have."""

    def room_on(self, node: Node) -> int:
        """Return how many such workers fit on an idle node."""
        if any(node.labels.get(name) != value for name, value in self.labels.items()):
            return 0
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        fits = [
            int(node.resources.get(name, 0) / each + 1e-6)  # 1 // 0.1 is 9
            for name, each in asked.items()
            if each
        ]
        return min(fits, default=1 << 30)

    def room(self, nodes: Sequence[Node]) -> int:
        """Return how many such workers fit on idle nodes."""
        return sum(map(self.room_on, nodes))

    def options(self) -> dict[str, Any]:
        """Return the options of an actor of Ray."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus or None,
            "memory": self.memory or None,
            "label_selector": dict(self.labels) or None,
        }

    def bundle(self) -> dict[str, float]:
        """Return the resources as a placement group or Ray Train has them."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: each for name, each in asked.items() if each}

    def __str__(self) -> str:
        """Say it, such as `8 CPUs, a GPU and 64 GB of memory, with accelerator-type L4`."""
        parts = [f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"] if self.cpus else []
        if self.gpus:
            parts.append("a GPU" if self.gpus == 1 else f"{self.gpus:g} GPUs")
        if self.memory:
            parts.append(f"{self.memory / 1e9:g} GB of memory")
        text = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or "nothing"
        labels = [f"{name.removeprefix('ray.io/')} {value}" for name, value in self.labels.items()]
        return f"{text}, with {' and '.join(labels)}" if labels else text


def placed(cpus: float, gpus: float, placement: Placement) -> Request:
    """Return the request of a worker that is placed so."""
    labels = {ACCELERATOR: placement.accelerator, MARKET: placement.market}
    return Request(
        cpus,
        gpus,
        int((placement.memory_gb or 0) * 1e9),
        {name: value for name, value in labels.items() if value is not None},
    )


def pool_request(pool: WorkerPool, nodes: Sequence[Node]) -> Request:
    """Return what a worker of a pool asks for; unless the pool says, a GPU if there is one."""
    gpus = pool.gpus_per_worker
    if gpus is None:
        gpus = float(any(node.has_gpu for node in nodes))
    return placed(0 if gpus else pool.cpus_per_worker, gpus, pool.placement)


def cluster_nodes() -> list[Node]:
    """Return the nodes that the joined cluster has now."""
    import ray

    return [
        Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]
    ]
