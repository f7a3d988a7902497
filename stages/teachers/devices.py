"""The device of a worker: the GPU that Ray gave it, else its CPUs."""

from __future__ import annotations

import torch

from schemas.config import WorkerPool


def worker_device(cpus: float, gpus: float | None) -> torch.device:
    """The GPU that Ray made visible, for a worker that holds `gpus` of them; None means one where
    there is any. Otherwise the CPU, with as many threads as the worker holds CPUs: Ray hides no GPU
    from a worker that asked for none.
    """
    if gpus != 0 and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, int(cpus)))
    return torch.device("cpu")


def pool_device(pool: WorkerPool) -> torch.device:
    """The device of one worker of a pool."""
    return worker_device(pool.cpus_per_worker, pool.gpus_per_worker)
