"""The pods of a Ray cluster, closed as the `restricted` Pod Security Standard wants them, and more:
not root, a read-only root file system, no capabilities, the default seccomp profile.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from pipeline.kuberay.groups import labels_of
from schemas.kubernetes import KubernetesConfig, WorkerGroup

HOME = "/home/ladd"
SUBMITTER = "ray-job-submitter"
"""The name that KubeRay wants for the container."""
CONFIG_FOLDER = "/etc/ladd"
_AGENT_PORT = 52365
"""Of Ray's agent on each node. It says without a token whether the raylet lives, and on the head
whether the GCS does.
"""
_PROBES = {"startupProbe": (5, 60), "readinessProbe": (10, 6), "livenessProbe": (30, 6)}
"""Seconds between questions, and how many may fail in a row: a busy node may be slow to answer."""
_USER = 1000
"""Of the image. A cluster that gives each namespace its own user id may set another."""
_OBJECT_STORE = 2e9
"""Bytes: between processes go names and numbers, not pictures."""

CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SPOT_LABELS = (
    ("cloud.google.com/gke-spot", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
)
"""The labels by which providers mark nodes that they may take back; some taint them with it too."""


def image_of(kubernetes: KubernetesConfig) -> str:
    """Return the image of all nodes."""
    return kubernetes.image or f"ladd-pipeline:{metadata.version('ladd-pipeline')}"


def labels(kubernetes: KubernetesConfig, component: str = "") -> dict[str, str]:
    """Return the labels of everything that belongs to a cluster, or of one kind of its pods."""
    return {
        "app.kubernetes.io/part-of": "ladd-pipeline",
        "app.kubernetes.io/instance": kubernetes.name,
    } | ({"app.kubernetes.io/component": component} if component else {})


def head_group(kubernetes: KubernetesConfig, config_map: dict[str, Any] | None) -> dict[str, Any]:
    """Return the head: it coordinates, and has no CPU for the work of stages."""
    head = kubernetes.head
    ports = [("gcs", 6379), ("dashboard", 8265), ("metrics", 8080)]
    amounts = _amounts(head.memory_gb, head.disk_gb)
    resources = {"requests": {"cpu": f"{head.cpus:g}"} | amounts, "limits": amounts}
    container = _container(kubernetes, "ray-head", resources, config_map)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports]
    # The autoscaler beside Ray talks to Kubernetes.
    pod = _pod(kubernetes, container, head.memory_gb, head.disk_gb, config_map, token=True)
    return {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"} | _object_store(head.memory_gb),
        "template": {"metadata": {"labels": labels(kubernetes, "head")}, "spec": pod},
    }


def worker_group(
    kubernetes: KubernetesConfig, group: WorkerGroup, config_map: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a group of nodes that scales between its limits."""
    amounts = {"cpu": str(group.cpus)} | _amounts(group.memory_gb, group.disk_gb)
    if group.gpus:
        amounts["nvidia.com/gpu"] = str(group.gpus)
    resources = {"requests": amounts, "limits": amounts}
    container = _container(kubernetes, "ray-worker", resources, config_map)
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    pod = _pod(kubernetes, container, group.memory_gb, group.disk_gb, config_map) | _where(group)
    made = {
        "groupName": group.name,
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        "rayStartParams": _object_store(group.memory_gb),
        "template": {"metadata": {"labels": labels(kubernetes, "worker")}, "spec": pod},
    }
    return made | ({"labels": own} if (own := labels_of(group)) else {})


def submitter(kubernetes: KubernetesConfig) -> dict[str, Any]:
    """Return the template of the pod that submits the job and follows it. It outlives the head."""
    amounts = _amounts(1, 1)
    resources = {"requests": {"cpu": "500m"} | amounts, "limits": amounts}
    container = _container(kubernetes, SUBMITTER, resources, None)
    for probe in _PROBES:
        del container[probe]
    pod = _pod(kubernetes, container, 1, 1, None) | {"restartPolicy": "Never"}
    return {"metadata": {"labels": labels(kubernetes, "submitter")}, "spec": pod}


def _container(
    kubernetes: KubernetesConfig,
    name: str,
    resources: dict[str, Any],
    config_map: dict[str, Any] | None,
) -> dict[str, Any]:
    env = {
        "HOME": HOME,
        "RAY_USAGE_STATS_ENABLED": "0",
        # What the command sets for the processes that it starts itself.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
    } | kubernetes.env
    mounts = [("tmp", "/tmp"), ("home", HOME), ("shm", "/dev/shm")]
    container: dict[str, Any] = {
        "name": name,
        "image": image_of(kubernetes),
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    if kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": kubernetes.secret, "optional": True}}]
    container |= {
        "resources": resources,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts],
    } | {name: _probe(*settings) for name, settings in _PROBES.items()}
    if config_map:
        mount = {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}
        container["volumeMounts"].append(mount)
    return container


def _amounts(memory_gb: float, disk_gb: float) -> dict[str, str]:
    return {"memory": f"{memory_gb:g}G", "ephemeral-storage": f"{disk_gb:g}G"}


def _probe(every: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/api/healthz", "port": _AGENT_PORT},
        "periodSeconds": every,
        "timeoutSeconds": 10,
        "failureThreshold": failures,
    }


def _pod(
    kubernetes: KubernetesConfig,
    container: dict[str, Any],
    memory_gb: float,
    disk_gb: float,
    config_map: dict[str, Any] | None,
    *,
    token: bool = False,
) -> dict[str, Any]:
    shared = f"{_store_bytes(memory_gb) * 2:d}"
    volumes = [
        {"name": "tmp", "emptyDir": {"sizeLimit": f"{disk_gb:g}G"}},
        {"name": "home", "emptyDir": {"sizeLimit": f"{disk_gb:g}G"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}},
    ]
    if config_map:
        volumes.append({"name": "config", "configMap": config_map})
    return {
        "serviceAccountName": kubernetes.name,
        "automountServiceAccountToken": token,
        "enableServiceLinks": False,
        "securityContext": _POD_SECURITY,
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": volumes,
    }


def _store_bytes(memory_gb: float) -> int:
    return int(min(_OBJECT_STORE, memory_gb * 1e9 / 8))


def _object_store(memory_gb: float) -> dict[str, str]:
    return {"object-store-memory": str(_store_bytes(memory_gb))}


def _where(group: WorkerGroup) -> dict[str, Any]:
    """Say which of Kubernetes' nodes a group's pods go to, and which taints they tolerate."""
    tolerations = []
    made: dict[str, Any] = {"nodeSelector": group.node_selector} if group.node_selector else {}
    if group.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if group.market == "spot":
        terms = [[_expression(name, "In", value)] for name, value in _SPOT_LABELS]
        tolerations += [
            {"key": name, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for name, value in _SPOT_LABELS
        ]
    else:
        terms = [[_expression(name, "NotIn", value) for name, value in _SPOT_LABELS]]
    if group.market is not None:
        made["affinity"] = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": term} for term in terms]
                }
            }
        }
    return made | ({"tolerations": tolerations} if tolerations else {})


def _expression(name: str, operator: str, value: str) -> dict[str, Any]:
    return {"key": name, "operator": operator, "values": [value]}
