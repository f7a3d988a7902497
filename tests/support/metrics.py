"""torchmetrics on features instead of pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Given(nn.Module):
    """A feature extractor whose features are the pictures, for torchmetrics."""

    num_features = 24

    def forward(self, x):
        return x


def by_torchmetrics(metric, first: np.ndarray, second: np.ndarray):
    metric = metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    return metric.compute()
