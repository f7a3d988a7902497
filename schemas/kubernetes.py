"""The Kubernetes cluster that a run is put on. No field changes a result."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import Frozen, runtime

_NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(^|_)KEY($|_)|API_?KEY")
Name = Annotated[str, Field(min_length=1, max_length=40, pattern=_NAME)]


class HeadNode(Frozen):
    """The node that coordinates the stages and runs none of their workers."""

    cpus: float = runtime(4, gt=0)
    """CPUs that its pod asks Kubernetes for; Ray is told that it has none."""
    memory_gb: float = runtime(32, gt=0)
    """Memory in GB of 10^9 bytes. `distill` and `dpo` hold a float32 copy of the student there."""
    disk_gb: float = runtime(100, gt=0)
    """Local disk in GB."""


class WorkerGroup(Frozen):
    """Nodes of one kind. The autoscaler starts them when a stage asks for them."""

    name: Name = runtime()
    """Lower-case letters, digits and hyphens."""
    cpus: int = runtime(ge=1)
    """CPUs of a node."""
    memory_gb: float = runtime(gt=0)
    """Memory of a node, in GB of 10^9 bytes."""
    gpus: int = runtime(0, ge=0)
    """GPUs of a node."""
    accelerator: str | None = runtime(None, max_length=63, pattern=_LABEL)
    """Type of its GPUs as Ray names it: what a stage's `placement.accelerator` is compared with."""
    market: Literal["spot", "on-demand"] | None = runtime(None)
    """Whether the provider may take its nodes back; empty takes what the cluster gives."""
    min_nodes: int = runtime(0, ge=0)
    """Nodes that are always up."""
    max_nodes: int = runtime(1, ge=1)
    """The most nodes."""
    disk_gb: float = runtime(200, gt=0)
    """Local disk of a node in GB: latents, pictures, models from the hub."""
    node_selector: dict[str, str] = runtime({})
    """Labels that Kubernetes' node must have, such as the provider's name of the GPU."""

    @model_validator(mode="after")
    def _has_a_range(self) -> WorkerGroup:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is above max_nodes {self.max_nodes}")
        return self


class KubernetesConfig(Frozen):
    """What `ladd-pipeline k8s` makes of this configuration. No field changes a result."""

    name: Name = runtime("ladd-pipeline")
    """Name of the RayJob and of all that belongs to it."""
    namespace: str | None = runtime(None, max_length=63, pattern=_NAME)
    """Namespace; empty means that of the kubeconfig."""
    image: str | None = runtime(None, min_length=1)
    """The image of all nodes; empty means `ladd-pipeline:` with this version."""
    use_gpus: bool = runtime(True)
    """What an empty `gpus_per_worker` or `use_gpu` of a stage means here: no node is up when the
    cluster starts, so it cannot be detected.
    """
    groups: list[WorkerGroup] = runtime([])
    """The kinds of nodes. Empty makes one for each kind that the stages ask for: with or without
    GPUs, by accelerator and by market.
    """
    max_workers: int = runtime(8, ge=1)
    """Workers to provide nodes for when a stage does not set a number."""
    cpus_per_gpu: int = runtime(8, ge=1)
    """CPUs per GPU in a generated GPU node."""
    memory_gb_per_gpu: float = runtime(64, gt=0)
    """Memory per GPU in a generated GPU node, in GB."""
    cpus_per_node: int = runtime(8, ge=1)
    """CPUs of a generated CPU node."""
    memory_gb_per_cpu: float = runtime(4, gt=0)
    """Memory per CPU in a generated CPU node, in GB."""
    accelerators: dict[str, dict[str, str]] = runtime({})
    """For each accelerator that a stage names, the labels of Kubernetes' nodes that have it, such
    as {L4: {cloud.google.com/gke-accelerator: nvidia-l4}}.
    """
    head: HeadNode = runtime(HeadNode())
    secret: Name | None = runtime("ladd-pipeline")
    """A Secret whose entries are environment variables of all pods (HF_TOKEN, keys of a store); it
    may be missing.
    """
    service_account_annotations: dict[str, str] = runtime({})
    """Bind the pods to an identity that may use the bucket."""
    env: dict[str, str] = runtime({})
    """Further environment variables of all pods; nothing secret."""
    retries: int = runtime(3, ge=0)
    """How often a run that ended with an error is started again, on a new cluster: it resumes."""
    deadline_hours: float = runtime(168, gt=0)
    """Hours after which the job is ended in any case."""
    idle_minutes: float = runtime(5, gt=0)
    """Minutes after which the autoscaler gives an idle node back."""
    keep_minutes: float = runtime(10, ge=0)
    """Minutes for which the pods of a finished job stay, for their logs."""

    @field_validator("env")
    @classmethod
    def _is_no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable")
            if _SECRET.search(name.upper()):
                raise ValueError(f"{name} looks like a secret; put it into the Secret of `secret`")
        return env

    @model_validator(mode="after")
    def _names_differ(self) -> KubernetesConfig:
        names = [group.name for group in self.groups]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two groups are named {twice[0]}")
        return self
