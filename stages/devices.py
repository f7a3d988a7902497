"""The device of a worker: the GPU that Ray gave it, else its CPUs."""

from __future__ import annotations

import torch


def worker_device(cpus: float) -> torch.device:
    """CUDA where Ray made a GPU visible; otherwise the CPU, with as many threads as the worker
    holds CPUs.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, int(cpus)))
    return torch.device("cpu")
