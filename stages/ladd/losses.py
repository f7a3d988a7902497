"""Adversarial losses over the logits of all heads (LADD, section 3), and the penalty on the heads.

All taps have equal weight, and all positions within a tap, so losses are comparable across buckets.
Logits are (B, h, w), above 0 means real. `kind` is hinge (Lim and Ye 2017) or softplus
(non-saturating, Goodfellow et al. 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def real_loss(real: Sequence[Tensor], kind: str = "hinge") -> Tensor:
    """The heads' `mean f(-D(real))`, averaged over taps: a scalar. f(x) is `relu(1 + x)` for hinge,
    `softplus(x)` for softplus.
    """
    return _cost(real, -1, kind)


def fake_loss(fake: Sequence[Tensor], kind: str = "hinge") -> Tensor:
    """The heads' `mean f(D(fake))`, averaged over taps: a scalar. With hinge, `real_loss` and this
    are both 1 while the heads know nothing.
    """
    return _cost(fake, 1, kind)


def student_loss(fake: Sequence[Tensor], kind: str = "hinge") -> Tensor:
    """`-mean D(fake)` for hinge, `mean softplus(-D(fake))` for softplus, averaged over taps: a
    scalar that falls as the student fools the heads.
    """
    terms = [(F.softplus(-x) if kind == "softplus" else -x).mean() for x in fake]
    return torch.stack(terms).mean()


def r1_penalty(real: Sequence[Tensor], near: Sequence[Tensor]) -> Tensor:
    """Approximate R1 (APT, Lin et al. 2025): `mean (D(real) - D(near))^2`, averaged over taps.
    `near` are the logits of the same noised samples, slightly perturbed, at the same noise level.
    """
    terms = [(r - n).square().mean() for r, n in zip(real, near, strict=True)]
    return torch.stack(terms).mean()


def _cost(logits: Sequence[Tensor], sign: int, kind: str) -> Tensor:
    terms = [F.softplus(sign * x) if kind == "softplus" else F.relu(1 + sign * x) for x in logits]
    return torch.stack([term.mean() for term in terms]).mean()
