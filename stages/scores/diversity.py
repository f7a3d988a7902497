"""Diversity within a prompt: how much the pictures of one prompt differ. A collapsed student draws
the same picture every time for a prompt, and no distance between sets shows that as clearly.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def intra_prompt_diversity(features_PSF: np.ndarray) -> float:
    """Return the mean Euclidean distance between the features of two pictures of one prompt, over
    all pairs of the S pictures of each of P prompts; higher is more diverse.

    Raises ValueError without a prompt, or with fewer than two pictures per prompt.
    """
    prompts, pictures, _ = features_PSF.shape
    if prompts == 0 or pictures < 2:
        raise ValueError("diversity within a prompt needs at least two pictures per prompt")
    features = np.asarray(features_PSF, np.float64)
    pairs = combinations(range(pictures), 2)
    return float(
        np.mean([np.linalg.norm(features[:, i] - features[:, j], axis=-1) for i, j in pairs])
    )
