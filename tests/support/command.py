"""Starts `ladd-pipeline` as a person would, or in this process, and interrupts it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.cluster import ray_cluster
from pipeline.commands.opening import open_config
from tests.support.without_ray import without_ray

COMMAND = [sys.executable, "-m", "pipeline.cli"]
ROOT = Path(__file__).parents[2]


def call(*arguments: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, which starts its own Ray."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200)


def call_here(*arguments: Any, cwd: Path = ROOT, ray: bool = False) -> subprocess.CompletedProcess:
    """Run a command in this process, as fast as its own work is: most of a small run's time in
    `call` is the start of processes.

    With `ray`, a Ray that is started once serves all such commands. Without it the stages, their
    shards and their trainings run in this process, one after another, and everything else is as it
    is for a person: arguments, plan, checks, leases, commits, messages and exit codes.
    """
    out, errors = io.StringIO(), io.StringIO()
    handler = signal.getsignal(signal.SIGTERM)
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patch,
    ):
        if ray:
            start_ray()
        else:
            without_ray(patch)
        patch.setattr(sys, "argv", ["ladd-pipeline", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), errors.getvalue())


_ray = contextlib.ExitStack()
"""The Ray of this process, where one runs."""


@functools.cache
def start_ray() -> None:
    """Start the Ray of this process, unless it runs already."""
    _ray.enter_context(ray_cluster(open_config(None, "shapes-smoke", (), {})))
    atexit.register(stop_ray)


def stop_ray() -> None:
    """Stop the Ray of this process, if one runs: even idle it takes its share of the cores."""
    _ray.close()
    start_ray.cache_clear()


def start_until(
    ready: Callable[[], Any],
    *arguments: Any,
    command: list[str] = COMMAND,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> subprocess.Popen:
    """Start the command in a process group of its own; returns it, running, as soon as
    `ready()`.
    """
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 900
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"ended or hung before it was ready: {process.communicate()[1]}")
        time.sleep(0.05)
    return process


def run_and_kill(arguments: list[Any], ready: Callable[[], Any]) -> None:
    """Start a run and kill -9 its whole process group as soon as `ready()`."""
    process = start_until(ready, *arguments)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def artifact(store: Path, stage: str) -> Path:
    """The folder of the store's one artifact of a stage."""
    (folder,) = (path.parent for path in (store / "artifacts" / stage).glob("*/manifest.json"))
    return folder
