"""The device of a worker: the GPU that Ray assigned to it, else the CPU."""

from __future__ import annotations

import torch

from schemas.cpus import own_cpus
from schemas.resources import WorkerPool


def worker_device(cpus: float, gpus: float | None) -> torch.device:
    """The GPU that Ray made visible, else the CPU with one thread per CPU of the worker, but no
    more than this process may use.

    `gpus` is the number of GPUs of the worker; None means one if any is visible. With 0 it is the
    CPU even if a GPU is visible: Ray does not hide GPUs from a worker that asked for none.
    """
    if gpus != 0 and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, min(int(cpus), own_cpus())))
    return torch.device("cpu")


def pool_device(pool: WorkerPool) -> torch.device:
    """The device of one worker of a pool."""
    return worker_device(pool.cpus_per_worker, pool.gpus_per_worker)
