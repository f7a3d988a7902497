"""Diversity within a prompt: how much the pictures of one prompt differ. A collapsed student draws
the same picture every time for a prompt, and no distance between sets shows that as clearly.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def intra_prompt_diversity(features_PSF: np.ndarray) -> float:
    """Return the mean of `diversity_by_prompt`; higher is more diverse."""
    return float(diversity_by_prompt(features_PSF).mean())


def diversity_by_prompt(features_PSF: np.ndarray) -> np.ndarray:
    """Return (P,): for each of P prompts, the mean Euclidean distance between the features of two
    of its S pictures, over all pairs.

    Raises ValueError without a prompt, or with fewer than two pictures per prompt.
    """
    prompts, pictures, _ = features_PSF.shape
    if prompts == 0 or pictures < 2:
        raise ValueError("diversity within a prompt needs at least two pictures per prompt")
    features = np.asarray(features_PSF, np.float64)
    pairs = combinations(range(pictures), 2)
    norms = [np.linalg.norm(features[:, i] - features[:, j], axis=-1) for i, j in pairs]
    return np.asarray(np.mean(norms, axis=0))
