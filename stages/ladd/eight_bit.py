"""AdamW whose moments take a byte each (Dettmers et al. 2022), by torchao."""

from __future__ import annotations

import os

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # its kernels are for other work

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit as TorchaoAdamW8bit


class AdamW8bit(TorchaoAdamW8bit):
    """torchao's AdamW with learning rates that are plain numbers, and moments that can be made
    before the first step. Weights of fewer than 4096 values keep float32 moments.
    """

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        # Compiled for GPUs alone: on a CPU that would ask for a C++ compiler.
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        with torch.compiler.set_stance("force_eager" if on_cpu else "default"):
            return super().step(closure)

    def empty_moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Zero moments of a weight, as the first step would make them."""
        return {
            "exp_avg": self._new_buffer(parameter, True),
            "exp_avg_sq": self._new_buffer(parameter, False),
        }
