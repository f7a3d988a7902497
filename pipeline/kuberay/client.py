"""Speaks to Kubernetes: applies the documents of a run, and reads what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.kuberay.manifests import Document
from schemas.errors import ArtifactError, ConfigError, LaddError, Locked, ServiceUnavailable

_FINISHED = {"Complete", "Failed", "ValidationFailed"}
"""States in which a RayJob does nothing more. One that is suspended may wait in Kueue's queue."""
_MANAGER = "ladd-pipeline"
_PATIENCE_SECONDS = 60
"""How long a finished job may take to be deleted."""


class Kubernetes:
    """One namespace of a cluster."""

    def __init__(self, context: str | None, namespace: str | None) -> None:
        """Open the context of the kubeconfig; without a context and a kubeconfig, inside a pod, the
        pod's own cluster. Raises ConfigError if there is none, or if the client is not installed.
        """
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise ConfigError(
                "k8s: the client of Kubernetes is not installed; pip install 'ladd-pipeline[k8s]'"
            ) from error
        file = os.environ.get("KUBECONFIG") or "~/.kube/config"
        default = None
        try:
            self._api = config.new_client_from_config(file, context)
            contexts, active = config.list_kube_config_contexts(file)
            chosen = next((one for one in contexts if one["name"] == context), active)
            default = chosen.get("context", {}).get("namespace")
        except config.ConfigException as error:
            if context is not None:  # a pod's own cluster would be another one
                raise ConfigError(
                    f"k8s: --context {context} cannot be opened ({error}); `kubectl config "
                    "get-contexts` lists those of the kubeconfig"
                ) from error
            inside = client.Configuration()
            try:
                config.load_incluster_config(client_configuration=inside)
            except config.ConfigException:
                raise ConfigError(
                    f"k8s: no cluster is configured ({error}); set KUBECONFIG, or name a --context"
                ) from error
            self._api = client.ApiClient(inside)
        self.namespace = namespace or default or "default"
        self._jobs = ("ray.io", "v1", self.namespace, "rayjobs")
        self._core = client.CoreV1Api(self._api)
        self._custom = client.CustomObjectsApi(self._api)

    def apply(self, documents: Sequence[Document]) -> Iterator[str]:
        """Apply the documents; yield what was applied. A job of the same name that has finished
        makes room first. Raises Locked if it has not: it reads what would be changed.
        """
        from kubernetes.dynamic import DynamicClient
        from kubernetes.dynamic.exceptions import ResourceNotFoundError

        for document in documents:
            if document["kind"] == "RayJob":
                self._make_room(document["metadata"]["name"])
        with _explained("what the cluster knows"):
            dynamic = DynamicClient(self._api)
        for document in documents:
            kind, name = document["kind"], document["metadata"]["name"]
            with _explained(f"{kind} {name}"):
                try:
                    resource = dynamic.resources.get(api_version=document["apiVersion"], kind=kind)
                except ResourceNotFoundError as error:
                    raise ConfigError(
                        f"k8s: the cluster knows no {kind}; install KubeRay's operator first "
                        "(infra/README.md)"
                    ) from error
                resource.server_side_apply(
                    body=document, name=name, namespace=self.namespace, field_manager=_MANAGER
                )
            yield f"{kind} {self.namespace}/{name}"

    def _make_room(self, name: str) -> None:
        there = self.job(name)
        if there is None:
            return
        state = there.get("status", {}).get("jobDeploymentStatus", "")
        if state not in _FINISHED:
            raise Locked(
                f"k8s: RayJob {self.namespace}/{name} is {state or 'starting'}; wait for it, "
                "delete it, or give this one another name with --set kubernetes.name=NAME"
            )
        with _explained(f"RayJob {name}"):
            self._custom.delete_namespaced_custom_object(*self._jobs, name)
        for _ in range(_PATIENCE_SECONDS):
            if self.job(name) is None:
                return
            time.sleep(1)
        raise Locked(f"k8s: RayJob {self.namespace}/{name} has ended, but is not deleted yet")

    def job(self, name: str) -> Document | None:
        """Return a RayJob as the cluster has it, or None."""
        try:
            with _explained(f"RayJob {name}"):
                return dict(self._custom.get_namespaced_custom_object(*self._jobs, name))
        except ServiceUnavailable:
            raise
        except ArtifactError:
            return None

    def pods(self, selector: dict[str, str]) -> list[Any]:
        """Return the pods with these labels, the oldest first."""
        words = ",".join(f"{name}={value}" for name, value in selector.items())
        with _explained("pods"):
            found = self._core.list_namespaced_pod(self.namespace, label_selector=words).items
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def log(self, pod: str, container: str, *, follow: bool) -> Iterator[str]:
        """Yield the lines of a container's log, and with `follow` those that come."""
        with _explained(f"log of {pod}"):
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=container, follow=follow, _preload_content=False
            )
            rest = b""
            for part in answer.stream():
                *lines, rest = (rest + part).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the failures of Kubernetes into one sentence."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except LaddError:
        raise
    except ApiException as error:
        raise _sentence(what, error) from error
    except HTTPError as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ServiceUnavailable(
            f"k8s: Kubernetes does not answer ({reason}); check the kubeconfig and the network"
        ) from error


def _sentence(what: str, error: Any) -> LaddError:
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        said = error.reason
    if error.status == 404:
        return ArtifactError(f"k8s: {what} is not there ({said})")
    if error.status in (401, 403):
        return ConfigError(f"k8s: {what}: not allowed ({said}); check the kubeconfig and its roles")
    if error.status >= 500:
        return ServiceUnavailable(f"k8s: {what}: {said}")
    return ConfigError(f"k8s: {what} was refused: {said}")
