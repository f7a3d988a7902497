"""Hinge losses over the logits of all heads (Lim and Ye 2017; LADD, section 3).

Every tap counts alike, and within a tap every place: buckets compare. Logits are (B, h, w), above 0
means real.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """`mean relu(1 - D(real)) + mean relu(1 + D(fake))`, averaged over taps: a scalar, 2 when heads
    know nothing.
    """
    terms = [F.relu(1 - r).mean() + F.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def student_loss(fake: Sequence[Tensor]) -> Tensor:
    """`-mean D(fake)`, averaged over taps: a scalar, negative while the student fools the heads."""
    return -torch.stack([logits.mean() for logits in fake]).mean()
