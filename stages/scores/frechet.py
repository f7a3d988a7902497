"""Fréchet distance between two sets of features (Heusel et al. 2017, equation 6)."""

from __future__ import annotations

import numpy as np


def frechet_distance(first_NF: np.ndarray, second_NF: np.ndarray) -> float:
    """Return `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` of features (N, F), computed in float64;
    0 for equal sets, lower is closer.

    Raises ValueError with fewer than two rows in a set.
    """
    if min(len(first_NF), len(second_NF)) < 2:
        raise ValueError("a Fréchet distance needs at least two pictures in each set")
    first, second = (np.asarray(x, np.float64) for x in (first_NF, second_NF))
    means = first.mean(0) - second.mean(0)
    one, two = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    # tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    # symmetric.
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    return float(max(0.0, means @ means + np.trace(one) + np.trace(two) - 2 * cross))
