"""Diversity within a prompt: how much pictures of one prompt differ. A student that has collapsed
draws one picture a prompt, and no distance between sets shows it as plainly.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np


def intra_prompt_diversity(features_PSF: np.ndarray) -> float:
    """The mean Euclidean distance between the features of two pictures of one prompt, over all
    pairs of S pictures of each of P prompts; higher is more diverse.

    Raises ValueError with no prompt, or with fewer than two pictures a prompt.
    """
    prompts, pictures, _ = features_PSF.shape
    if prompts == 0 or pictures < 2:
        raise ValueError("diversity within a prompt needs at least two pictures of a prompt")
    features = np.asarray(features_PSF, np.float64)
    pairs = combinations(range(pictures), 2)
    return float(
        np.mean([np.linalg.norm(features[:, i] - features[:, j], axis=-1) for i, j in pairs])
    )
