"""Kernel distances between two sets of features: KID and CMMD.

Both are a squared maximum mean discrepancy (Gretton et al. 2012): the sum of the mean kernels
within each set, minus twice the mean kernel between the sets. N features per set, F their width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_ROWS = 1024
"""Rows in one block of a kernel sum: memory stays linear in N."""

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def kid(first_NF: np.ndarray, second_NF: np.ndarray) -> float:
    """Kernel Inception Distance (Bińkowski et al. 2018): kernel `(x·y / F + 1)^3`, the unbiased
    estimate on the whole sets; about 0 (or slightly below) for sets from one distribution, lower is
    closer.

    Raises ValueError with fewer than two rows in a set.
    """
    first, second = _as_sets(first_NF, second_NF, at_least=2)
    n, m = len(first), len(second)
    within = (_sum(_cubic, first, first) - _diagonal(first)) / (n * (n - 1))
    within += (_sum(_cubic, second, second) - _diagonal(second)) / (m * (m - 1))
    return float(within - 2 * _sum(_cubic, first, second) / (n * m))


def paired_kid(first_NF: np.ndarray, second_NF: np.ndarray) -> float:
    """`kid` of two sets whose rows of one number are pictures of one prompt: equation 4 of Gretton
    et al. 2012, which leaves their kernels out of the mean between the sets. Pictures of one prompt
    are alike: with their kernels the estimate is too low, without them it is unbiased.

    Raises ValueError with fewer than two rows, or sets of different sizes.
    """
    first, second = _as_sets(first_NF, second_NF, at_least=2)
    if len(first) != len(second):
        raise ValueError(f"sets of {len(first)} and {len(second)} pictures are not paired")
    n, width = first.shape
    within = _sum(_cubic, first, first) - _diagonal(first)
    within += _sum(_cubic, second, second) - _diagonal(second)
    same_prompt = float((((first * second).sum(1) / width + 1) ** 3).sum())
    between = _sum(_cubic, first, second) - same_prompt
    return float((within - 2 * between) / (n * (n - 1)))


def cmmd(first_NF: np.ndarray, second_NF: np.ndarray) -> float:
    """CLIP-MMD (Jayasumana et al. 2024): kernel `exp(-|x - y|^2 / 200)`, times 1000, the biased
    estimate of the authors' code; 0 for equal sets, lower is closer.

    Defined for CLIP embeddings of unit length; values from another space compare only within it.
    """
    first, second = _as_sets(first_NF, second_NF, at_least=1)
    within = _sum(_gaussian, first, first) / len(first) ** 2
    within += _sum(_gaussian, second, second) / len(second) ** 2
    between = _sum(_gaussian, first, second) / (len(first) * len(second))
    return float(1000 * max(0.0, within - 2 * between))


def _as_sets(
    first_NF: np.ndarray, second_NF: np.ndarray, *, at_least: int
) -> tuple[np.ndarray, np.ndarray]:
    if min(len(first_NF), len(second_NF)) < at_least:
        raise ValueError(
            f"this distance needs at least {at_least} pictures in each set, got {len(first_NF)} "
            f"and {len(second_NF)}"
        )
    return np.asarray(first_NF, np.float64), np.asarray(second_NF, np.float64)


def _cubic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _diagonal(features: np.ndarray) -> float:
    """Sum of the diagonal of the cubic kernel of a set with itself."""
    return float((((features**2).sum(1) / features.shape[1] + 1) ** 3).sum())


def _gaussian(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.exp(-squares / (2 * 10.0**2))


def _sum(kernel: Kernel, first: np.ndarray, second: np.ndarray) -> float:
    blocks = (first[start : start + _ROWS] for start in range(0, len(first), _ROWS))
    return float(sum(kernel(block, second).sum() for block in blocks))
