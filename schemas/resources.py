"""What a stage's workers need from the machines they run on. No field changes a result."""

from __future__ import annotations

from typing import Literal

from schemas.base import Frozen, runtime

_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
"""The value of a label, in Kubernetes and in Ray."""


class Placement(Frozen):
    """Which nodes of a cluster a stage's workers run on. A local Ray ignores it, so one file
    serves both. No field changes the result.
    """

    accelerator: str | None = runtime(None, max_length=63, pattern=_LABEL)
    """Type of GPU as Ray names it, such as L4, A100 or H100; empty takes any."""
    memory_gb: float | None = runtime(None, gt=0)
    """Memory of each worker, in GB of 10^9 bytes, that its node must have left; empty asks for
    none.
    """
    market: Literal["spot", "on-demand"] | None = runtime(None)
    """Whether nodes may be taken back at any time (spot), or may not; empty takes both."""


class WorkerPool(Frozen):
    """Workers of a stage. No field changes the result."""

    workers: int = runtime(0, ge=0)
    """Number of actors; 0 means one per GPU, or per `cpus_per_worker` CPUs if there is no GPU, and
    more when nodes join.
    """
    min_workers: int | None = runtime(None, ge=1)
    """Number of actors to begin with on a joined cluster; empty means `workers`, or as many as the
    cluster has room for. An autoscaling cluster is asked for these at once, and for more while
    work remains.
    """
    cpus_per_worker: float = runtime(1, gt=0)
    """CPUs (and threads) per actor."""
    gpus_per_worker: float | None = runtime(None, ge=0)
    """GPUs per actor; empty means 1 if the cluster has GPUs when the stage starts, else 0."""
    retries: int = runtime(2, ge=0)
    """How often to retry a shard whose worker was lost or whose store did not answer."""
    placement: Placement = runtime(Placement())
