"""Joins the configured Ray cluster, or starts Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline import machine
from pipeline.base.foreign import sentence
from pipeline.own_packages import finder
from schemas.config import PipelineConfig
from schemas.errors import LaddError, ProcessLost, StageFailed

_ROOT = Path(__file__).parents[1]
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_helpers: list[psutil.Process] = []
"""The processes that a Ray of this machine cannot do without, while it runs."""


def _print_warning(text: str) -> None:
    print(f"warning  ray  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def ray_cluster(
    config: PipelineConfig, warn: Callable[[str], None] = _print_warning
) -> Iterator[None]:
    """Join the configured cluster, or start Ray on this machine, until the block ends. A nested
    block uses the cluster of the outer one. Raises StageFailed if there is no cluster then.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
    with_others = config.ray.is_joined
    if not with_others:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_listening(with_others=with_others))
        import ray

        if ray.is_initialized():
            yield
            return
        options = _joined(config) if config.ray.address else _local(config, warn, stack)
        our_handler = signal.getsignal(signal.SIGTERM)
        stack.callback(ray.shutdown)
        stack.callback(_helpers.clear)
        _start(options, warn)
        signal.signal(signal.SIGTERM, our_handler)  # ray.init replaces it
        _quiet_ray_data()
        yield


def require_ray() -> None:
    """Raise ProcessLost if a process that the Ray of this machine cannot do without has ended.
    Ray itself would wait for ever, or after a minute end this process.
    """
    for process in _helpers:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise ProcessLost("a process of Ray on this machine (its raylet or GCS) has ended")


@contextlib.contextmanager
def _listening(*, with_others: bool) -> Iterator[None]:
    """Let the processes of a local Ray listen on the loopback address alone: nobody joins it. This
    is Ray's own switch for systems on which it forms no clusters. A user's own choice stays.
    """
    if with_others or _CLUSTERS in os.environ:
        yield
        return
    os.environ[_CLUSTERS] = "0"
    _read_again()
    try:
        yield
    finally:
        del os.environ[_CLUSTERS]
        _read_again()


def _read_again() -> None:
    """Ray reads its switch when it is first imported, which may have been before this."""
    constants: Any = sys.modules.get("ray._private.ray_constants")
    if constants is not None:
        forms = sys.platform not in ("darwin", "win32")
        constants.ENABLE_RAY_CLUSTER = constants.env_bool(_CLUSTERS, forms)


def _joined(config: PipelineConfig) -> dict[str, Any]:
    assert config.ray.address
    options = {"address": config.ray.address}
    return options if "://" in config.ray.address else options | _ours_first()


def _local(
    config: PipelineConfig, warn: Callable[[str], None], stack: contextlib.ExitStack
) -> dict[str, Any]:
    """Return the options of a Ray that fits on this machine."""
    # No cloud takes this machine back: a process less in each training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # How often Ray Train looks at its workers. A small training waits for that at each checkpoint.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    machine.settle_token()
    folder, remark = machine.ray_folder()
    if remark:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
    memory, narrow = machine.object_store_memory(
        machine.free_shared_memory(), machine.memory_limit(), folder
    )
    for text in filter(None, (remark, narrow, machine.cache_remark())):
        warn(text)
    return {
        "address": "local",  # otherwise Ray joins any cluster that runs on this machine
        "num_cpus": config.ray.num_cpus or machine.usable_cpus(),
        "include_dashboard": False,
        "object_store_memory": memory,
        "_temp_dir": folder,
    } | _ours_first()


def _ours_first() -> dict[str, Any]:
    return {"runtime_env": {"worker_process_setup_hook": _at_start(finder(str(_ROOT)))}}


def _at_start(find_ours: Callable[[], None]) -> Callable[[], None]:
    """Return what each worker process does first; Ray sends it by value."""

    def start() -> None:
        import os

        import ray

        find_ours()
        # Without it, Ray's state calls ask the Ray that started last on this machine. Ray Train's
        # cleaner then takes our controller for dead, and removes the places of its workers.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    return start


def _start(options: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Start or join Ray. A start on a busy machine may take longer than Ray waits: it is tried
    twice.
    """
    local = options["address"] == "local"
    try:
        _init(options)
    except LaddError as error:
        if not local:
            raise
        warn(f"{error}; trying once more")
        _init(options)
    if local:
        children = psutil.Process().children()
        _helpers[:] = [child for child in children if child.name() in ("gcs_server", "raylet")]


def _init(options: dict[str, Any]) -> None:
    """Call `ray.init` in the root folder: it puts the folder that it is called in first on the path
    of all workers, and what is in a user's folder (random.py, say) would break them.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
    try:
        with contextlib.chdir(os.sep):
            ray.init(**options, **quiet)
    except Exception as error:  # Ray raises bare ones, too
        ray.shutdown()
        if options["address"] == "local":
            text = f"Ray did not start on this machine ({sentence(error)})"
        else:
            text = f"ray.address: cannot join the Ray cluster ({sentence(error)})"
        raise StageFailed(text) from error


def _quiet_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
