"""An API server on loopback that answers as Kubernetes does, for the few calls of `k8s`."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

_GROUPS = {
    "": ("v1", {"ConfigMap": "configmaps", "ServiceAccount": "serviceaccounts"}),
    "networking.k8s.io": ("v1", {"NetworkPolicy": "networkpolicies"}),
    "policy": ("v1", {"PodDisruptionBudget": "poddisruptionbudgets"}),
    "ray.io": ("v1", {"RayJob": "rayjobs"}),
}


@dataclass
class FakeKubernetes:
    """What the server holds and has been asked."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path."""
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    """By pod."""
    applied: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    refuse: int = 0
    """Status with which every change is refused."""
    groups: dict[str, Any] = field(default_factory=lambda: dict(_GROUPS))
    address: str = ""

    def kubeconfig(self, path: Path, namespace: str = "ladd") -> Path:
        """Write a file that names this server."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [
                {
                    "name": "here",
                    "context": {"cluster": "here", "user": "me", "namespace": namespace},
                }
            ],
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def answer(self, method: str, path: str, query: str, body: bytes) -> tuple[int, Any]:
        """Return the status and the content (text is a log) of a call."""
        if path == "/version":
            return 200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return 200, {
                "kind": "APIGroupList",
                "groups": [self._group(n) for n in self.groups if n],
            }
        for name, (version, kinds) in self.groups.items():
            if path == (f"/apis/{name}/{version}" if name else f"/api/{version}"):
                return 200, self._resources(name, version, kinds)
        if path.endswith("/log"):
            return 200, self.logs[path.split("/")[-2]]
        if path.endswith("/pods"):
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": self._selected(query)}
        if method != "GET" and self.refuse:
            return self.refuse, {"kind": "Status", "message": "you may not do this"}
        if method == "PATCH":
            self.objects[path] = json.loads(body)
            self.applied.append(path)
            return 200, self.objects[path]
        if path not in self.objects:
            return 404, {"kind": "Status", "message": f"{path} not found"}
        if method == "DELETE":
            self.deleted.append(path)
            return 200, self.objects.pop(path)
        return 200, self.objects[path]

    def _group(self, name: str) -> dict[str, Any]:
        version = {
            "groupVersion": f"{name}/{self.groups[name][0]}",
            "version": self.groups[name][0],
        }
        return {"name": name, "versions": [version], "preferredVersion": version}

    def _resources(self, name: str, version: str, kinds: dict[str, str]) -> dict[str, Any]:
        verbs = ["get", "patch", "delete", "list", "create"]
        rows = [
            {"name": plural, "kind": kind, "namespaced": True, "verbs": verbs, "singularName": ""}
            for kind, plural in kinds.items()
        ]
        group = f"{name}/{version}" if name else version
        return {"kind": "APIResourceList", "groupVersion": group, "resources": rows}

    def _selected(self, query: str) -> list[dict[str, Any]]:
        from urllib.parse import parse_qs

        (selector,) = parse_qs(query)["labelSelector"]
        wanted = dict(pair.split("=") for pair in selector.split(","))
        return [pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()]


def serve(fake: FakeKubernetes) -> ThreadingHTTPServer:
    """Start the server; the caller ends it with `shutdown`."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = fake.answer(self.command, path, query, body)
            is_text = isinstance(content, str)
            data = content.encode() if is_text else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = _do

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.address = f"http://127.0.0.1:{server.server_address[1]}"
    return server
