"""What a Kubernetes cluster would say to manifests: their schemas, without unknown fields; and what
a security lint finds in them.
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.base.resources import Node, Request
from tests.support.command import ROOT

CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds-v1.7.0"
OVERLAYS = sorted(path.parent for path in (ROOT / "infra/k8s/overlays").glob("*/*.yaml"))
KUBERNETES = "1.33"
_POD_MONITOR = {
    "type": "object",
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "selector": {"properties": {"matchLabels": {}}, "additionalProperties": False},
        "podMetricsEndpoints": {
            "items": {
                "required": ["port"],
                "properties": {"port": {}, "path": {}, "interval": {}, "relabelings": {}},
                "additionalProperties": False,
            }
        },
    },
    "additionalProperties": False,
}
"""The fields of Prometheus' operator that we use (monitoring.coreos.com/v1)."""


def built(folder: Path) -> list[dict[str, Any]]:
    """The documents that `kubectl kustomize` makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; its `kustomize` builds the overlays")
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


@functools.cache
def custom_schema(kind: str) -> dict[str, Any]:
    """The schema of a kind of KubeRay v1.7.0, in which unknown fields are errors."""
    file = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"{file} is not there: KubeRay's definitions lie beside the project")
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    del schema["properties"]["metadata"]  # Kubernetes' own, checked apart
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(value) for name, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if not open_ended:
            made.setdefault("additionalProperties", False)
    return made


def require_valid(document: dict[str, Any]) -> None:
    """Fail unless a cluster would take the document, and all of it."""
    kind, group = document["kind"], document["apiVersion"].partition("/")[0]
    if group == "ray.io":
        jsonschema.Draft202012Validator(custom_schema(kind)).validate(document)
        for name, template in templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
            pod["metadata"] = {"name": name} | template.get("metadata", {})
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    elif kind == "PodMonitor":
        jsonschema.Draft202012Validator(_POD_MONITOR).validate(document["spec"])
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster in a RayJob, RayCluster or RayCronJob."""
    spec = document["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def templates(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The templates of the pods that KubeRay makes of a document."""
    cluster = cluster_of(document)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield f"worker-{group['groupName']}", group["template"]
    spec = document["spec"]
    if "submitterPodTemplate" in spec.get("jobTemplate", spec):
        yield "submitter", spec.get("jobTemplate", spec)["submitterPodTemplate"]


def group_nodes(cluster: dict[str, Any]) -> dict[str, tuple[Node, int]]:
    """What Ray's own autoscaler reads of each worker group: a node, and the most of them."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    resource = {"metadata": {"name": "x", "namespace": "x"}, "spec": copy.deepcopy(cluster)}
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    return {
        name: (Node(kind["resources"], kind["labels"]), kind["max_workers"])
        for name, kind in read["available_node_types"].items()
        if name != read["head_node_type"]
    }


def satisfies(cluster: dict[str, Any], request: Request) -> list[str]:
    """The worker groups whose nodes have room for a request."""
    return [name for name, (node, _) in group_nodes(cluster).items() if request.room_on(node)]


def findings(documents: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the security of a run's documents, by the `restricted` Pod Security
    Standard and some rules of our own.
    """
    found = []
    for document in documents:
        if document["apiVersion"].startswith("ray.io/"):
            cluster = cluster_of(document)
            if cluster.get("authOptions", {}).get("mode") != "token":
                found.append("Ray asks for no token")
            if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
                found.append("the head takes work")
            for name, template in templates(document):
                found += [f"{name}: {text}" for text in _of_pod(name, template["spec"])]
            if "autoscalerOptions" in cluster:
                sidecar = {"name": "autoscaler", "image": "x:1"} | cluster["autoscalerOptions"]
                found += [f"autoscaler: {text}" for text in _of_container(sidecar, probes=False)]
            found += _of_network(documents, document)
        if document["kind"] == "Secret":
            found.append("a Secret is among the manifests")
    return found


def _of_pod(name: str, pod: dict[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    yield from (f"uses {kind}" for kind in ("hostNetwork", "hostPID", "hostIPC") if pod.get(kind))
    for volume in pod.get("volumes", []):
        (kind,) = set(volume) - {"name"}
        if kind not in ("emptyDir", "configMap", "secret", "projected"):
            yield f"mounts a {kind}"
    if pod.get("serviceAccountName", "default") == "default":
        yield "uses the default account"
    if pod.get("automountServiceAccountToken", True) and name != "head":
        yield "holds a token of Kubernetes"
    for container in pod["containers"]:
        yield from _of_container(container, probes=name != "submitter")
        writable = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        if not {"/tmp", "/home/ladd"} <= writable:
            yield "cannot write to /tmp and its home"


def _of_container(container: dict[str, Any], *, probes: bool) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "can write to its root file system"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    limits = container.get("resources", {}).get("limits", {})
    requests = container.get("resources", {}).get("requests", {})
    if not limits.get("memory") or limits["memory"] != requests.get("memory"):
        yield "has no memory of its own"
    if not requests.get("cpu"):
        yield "asks for no CPU"
    if not re.search(r":[^:/]*\d[^:/]*$", container["image"]):
        yield f"has an image without a version ({container['image']})"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "opens a port of its node"
    for variable in container.get("env", []):
        if re.search("TOKEN|SECRET|PASSWORD|KEY", variable["name"]) and "value" in variable:
            yield f"has a secret in {variable['name']}"
    if probes and not {"livenessProbe", "readinessProbe"} <= set(container):
        yield "is not asked whether it lives"


def _of_network(documents: list[dict[str, Any]], job: dict[str, Any]) -> Iterator[str]:
    policies = [document for document in documents if document["kind"] == "NetworkPolicy"]
    for name, template in templates(job):
        labels = template["metadata"]["labels"].items()
        closing = [
            policy
            for policy in policies
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels
            and "Ingress" in policy["spec"]["policyTypes"]
        ]
        if not closing:
            yield f"{name}: no NetworkPolicy closes it"
        for policy in closing:
            for rule in policy["spec"]["ingress"]:
                if not all(
                    peer.get("podSelector") or "ports" in rule for peer in rule.get("from", [{}])
                ):
                    yield f"{name}: its NetworkPolicy lets everybody in"
