"""Joins the configured Ray cluster, or starts Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from schemas.config import PipelineConfig
from schemas.errors import StageFailed


@contextlib.contextmanager
def ray_cluster(config: PipelineConfig) -> Iterator[None]:
    """Join the configured cluster, or start Ray on this machine, until the block ends. A nested
    block uses the cluster of the outer one.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "ignore_reinit_error": True,
    }
    if config.ray.address is None:
        options |= {
            "address": "local",  # otherwise Ray joins any cluster that runs on this machine
            "num_cpus": config.ray.num_cpus or os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": 512 << 20,
        }
    else:
        options["address"] = config.ray.address
    our_handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
        signal.signal(signal.SIGTERM, our_handler)  # ray.init replaces it
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise StageFailed(
            "ray.address: cannot join or start a Ray cluster "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    try:
        _quiet_ray_data()
        yield
    finally:
        ray.shutdown()


def _quiet_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
