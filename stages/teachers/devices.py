"""The device of a worker: the GPU that Ray assigned to it, else the CPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from schemas.cpus import own_cpus
from schemas.errors import ConfigError
from schemas.resources import WorkerPool

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_KEPT_MEMORY = {-3: 32 << 20, -1: 1 << 30}
"""`M_MMAP_THRESHOLD` and `M_TRIM_THRESHOLD` of `mallopt(3)`, in bytes."""
_DRIVER = Path("/dev/nvidiactl")


def worker_device(cpus: float, gpus: float | None) -> torch.device:
    """The GPU that Ray made visible, else the CPU with one thread per CPU of the worker, but no
    more than this process may use.

    `gpus` is the number of GPUs of the worker; None means one if any is visible. With 0 it is the
    CPU even if a GPU is visible: Ray does not hide GPUs from a worker that asked for none.

    Raises ConfigError if the worker has a GPU that torch cannot use.
    """
    if gpus != 0 and torch.cuda.is_available():
        if not any(name in os.environ for name in _ALLOCATOR):
            # Buckets differ in shape: without this, freed memory of one does not serve the next.
            os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
        return torch.device("cuda")
    if gpus and _DRIVER.exists():
        raise ConfigError(
            f"workers: Ray gives this one a GPU, but torch {torch.__version__} cannot use it; "
            "install a build of torch for CUDA and a driver that is new enough, or set use_gpu: "
            "false (trainings) or gpus_per_worker: 0 (pools) for CPUs"
        )
    torch.set_num_threads(max(1, min(int(cpus), own_cpus())))
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory, in blocks of at most 32 MiB, for the next
    activations. Otherwise it returns them to the system after each layer, and takes them again page
    by page: a tenth of a small teacher's sampling.

    Only the GNU C library has these settings, and the user's own in the environment stay. Returns
    whether they were made.
    """
    if any(name in os.environ for name in _MALLOC):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, size) for option, size in _KEPT_MEMORY.items()
    )


def pool_device(pool: WorkerPool) -> torch.device:
    """The device of one worker of a pool."""
    return worker_device(pool.cpus_per_worker, pool.gpus_per_worker)
