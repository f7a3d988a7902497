"""What Kubernetes is asked for to run a pipeline: a RayJob and all that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.config import config_yaml
from pipeline.kuberay.groups import groups_for, needs_of, require_room, settled
from pipeline.kuberay.pods import (
    CONFIG_FOLDER,
    CONTAINER_SECURITY,
    head_group,
    labels,
    submitter,
    worker_group,
)
from pipeline.travelling import Luggage, require_shared_store
from schemas.config import PipelineConfig
from schemas.kubernetes import KubernetesConfig

Kind = Literal["RayJob", "RayCluster", "RayCronJob"]
Document = dict[str, Any]
CONFIG_FILE = "pipeline.yaml"
_DASHBOARD = 8265


def manifests(
    config: PipelineConfig,
    stages: Sequence[str],
    words: Sequence[str],
    luggage: Luggage,
    *,
    kind: Kind = "RayJob",
    schedule: str = "",
) -> list[Document]:
    """Return the documents of a run of some stages; `words` are the options of `run` that select
    them. A RayCluster has no job: `ladd-pipeline submit` gives it some. A RayCronJob has a
    `schedule`.

    Raises ConfigError, naming the stage, if no group of nodes has room for a worker, and for a
    store or a file that the cluster cannot see.
    """
    config = settled(config)
    require_shared_store(config.store)
    kubernetes = config.kubernetes
    needs = needs_of(config, stages)
    groups = groups_for(config, needs)
    require_room(needs, groups)
    files = None if kind == "RayCluster" else _config_map(config, luggage)
    volume = None if files is None else _volume(kubernetes, luggage)
    cluster = {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(kubernetes),
        "headGroupSpec": head_group(kubernetes, volume),
        "workerGroupSpecs": [worker_group(kubernetes, group, volume) for group in groups],
    }
    spec = cluster if kind == "RayCluster" else _job(kubernetes, cluster, words, luggage)
    if kind == "RayCronJob":
        spec = {"schedule": schedule, "jobTemplate": spec}
    made = [_service_account(kubernetes), _network_policy(kubernetes)]
    made += [_budget(kubernetes)]
    made += [] if files is None else [files]
    return [*made, _document(kubernetes, "ray.io/v1", kind, {"spec": spec})]


def _document(
    kubernetes: KubernetesConfig, version: str, kind: str, content: Mapping[str, Any]
) -> Document:
    about: dict[str, Any] = {"name": kubernetes.name}
    if kubernetes.namespace:
        about["namespace"] = kubernetes.namespace
    about["labels"] = labels(kubernetes)
    return {"apiVersion": version, "kind": kind, "metadata": about, **content}


def _service_account(kubernetes: KubernetesConfig) -> Document:
    made = _document(kubernetes, "v1", "ServiceAccount", {"automountServiceAccountToken": False})
    if kubernetes.service_account_annotations:
        made["metadata"]["annotations"] = kubernetes.service_account_annotations
    return made


def _network_policy(kubernetes: KubernetesConfig) -> Document:
    """Close the cluster to all but itself; KubeRay's operator reads the state of the job from the
    dashboard.
    """
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    spec = {
        "podSelector": {"matchLabels": labels(kubernetes)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": labels(kubernetes)}}]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": _DASHBOARD}]},
        ],
    }
    return _document(kubernetes, "networking.k8s.io/v1", "NetworkPolicy", {"spec": spec})


def _budget(kubernetes: KubernetesConfig) -> Document:
    """Keep Kubernetes from moving the head of its own will. A lost worker costs a shard or a
    checkpoint interval; and pods of KubeRay can have no `maxUnavailable`.
    """
    spec = {
        "minAvailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": labels(kubernetes, "head")},
    }
    return _document(kubernetes, "policy/v1", "PodDisruptionBudget", {"spec": spec})


def _config_map(config: PipelineConfig, luggage: Luggage) -> Document:
    made = _document(config.kubernetes, "v1", "ConfigMap", {})
    texts, packed = {CONFIG_FILE: config_yaml(config)}, {}
    for number, path in enumerate(luggage.files.values()):
        try:
            texts[_key(number, path)] = path.read_bytes().decode()  # with the line ends it has
        except UnicodeDecodeError:
            packed[_key(number, path)] = luggage.packed(path)
    made["data"] = texts
    return made | ({"binaryData": packed} if packed else {})


def _key(number: int, path: Path) -> str:
    """Name a file's entry: a ConfigMap has no folders, and few letters."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.name)
    return f"{number:03d}-{plain}"


def _volume(kubernetes: KubernetesConfig, luggage: Luggage) -> dict[str, Any]:
    """Return the ConfigMap as a volume, its files where the configuration names them."""
    prefix = f"{luggage.folder}/" if luggage.folder else ""
    items = [{"key": CONFIG_FILE, "path": prefix + CONFIG_FILE}]
    items += [
        {"key": _key(number, path), "path": name}
        for number, (name, path) in enumerate(luggage.files.items())
    ]
    return {"name": kubernetes.name, "items": items}


def _autoscaler(kubernetes: KubernetesConfig) -> dict[str, Any]:
    return {
        "version": "v2",
        "idleTimeoutSeconds": round(kubernetes.idle_minutes * 60),
        "imagePullPolicy": "IfNotPresent",
        "resources": {
            "requests": {"cpu": "500m", "memory": "1G"},
            "limits": {"cpu": "1", "memory": "1G"},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _job(
    kubernetes: KubernetesConfig, cluster: Document, words: Sequence[str], luggage: Luggage
) -> Document:
    return {
        "entrypoint": luggage.command(CONFIG_FOLDER, CONFIG_FILE, words),
        "submissionMode": "K8sJobMode",  # the submitter is a pod of its own, and outlives the head
        "submitterPodTemplate": submitter(kubernetes),
        "submitterConfig": {"backoffLimit": 3},
        "backoffLimit": kubernetes.retries,
        "activeDeadlineSeconds": round(kubernetes.deadline_hours * 3600),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": round(kubernetes.keep_minutes * 60),
        "rayClusterSpec": cluster,
    }
