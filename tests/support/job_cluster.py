"""A Ray cluster on this machine as KubeRay makes them: a head without CPUs and with a job server,
and nodes that join and are killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.command import COMMAND, ROOT
from tests.support.s3_servers import free_ports

PATIENCE = 1500
"""Seconds: on two slow cores with other work beside it, a run takes many minutes."""


@contextlib.contextmanager
def job_cluster(patch: pytest.MonkeyPatch, nodes: int = 0) -> Iterator[Any]:
    """Start a head and nodes of two CPUs each, in another folder than the command; our command is
    on their path. Gives `ray.cluster_utils.Cluster`.
    """
    from ray.cluster_utils import Cluster

    patch.chdir(ROOT)
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    patch.setenv("RAY_metrics_report_interval_ms", "1000")
    patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    port, agent = free_ports(2)  # other Rays on this machine have the usual ones
    options = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    options |= {"dashboard_agent_listen_port": agent}
    with tempfile.TemporaryDirectory(
        prefix="ray-",
        dir="/tmp",
        ignore_cleanup_errors=True,  # what was killed may still write
    ) as folders:
        cluster = Cluster(initialize_head=True, head_node_args=options)
        cluster.folders = folders
        try:
            for _ in range(nodes):
                join(cluster)
            yield cluster
        finally:
            cluster.shutdown()


def join(cluster: Any, **resources: Any) -> Any:
    """Start a node of two CPUs, with a folder of its own, as a machine has. In a folder that nodes
    share, each replaces the working directory in which a job of another runs.
    """
    folder = tempfile.mkdtemp(dir=cluster.folders)
    return cluster.add_node(num_cpus=2, temp_dir=folder, **resources)


def submit(cluster: Any, *arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Call `ladd-pipeline submit` with the cluster's address."""
    return subprocess.run(
        [*COMMAND, "submit", "--address", f"http://{cluster.webui_url}", *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def detached(cluster: Any, *arguments: Any, cwd: Path = ROOT) -> str:
    """Submit a run and leave it; returns its id."""
    started = submit(cluster, *arguments, "--detach", cwd=cwd)
    assert started.returncode == 0, started.stderr
    return started.stdout.splitlines()[0].removeprefix("submitted  ")


def wait_for(ready: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait until something is so, while the process, if one is given, still runs."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def kill_head(cluster: Any) -> None:
    """Kill the head and all that runs on it, as when its pod is lost: the drivers of jobs too."""
    drivers = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if "ladd-run.yaml" in (process.info["cmdline"] or ())
        and (process.info["environ"] or {}).get("RAY_ADDRESS") == cluster.address
    ]
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    for process in drivers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
