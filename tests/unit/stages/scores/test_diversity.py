"""Diversity against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from stages.scores.diversity import intra_prompt_diversity


def test_diversity_is_the_mean_distance_of_pairs():
    features = np.random.default_rng(3).normal(size=(5, 4, 7)).astype(np.float32)
    expected = np.mean([pdist(one).mean() for one in features])
    assert intra_prompt_diversity(features) == pytest.approx(expected, rel=1e-6)
    assert intra_prompt_diversity(features[:, [0, 0]]) == 0


TOO_FEW = r"needs? (at least|more)|too small|need more"


def test_too_few_pictures_for_diversity_are_said_so():
    with pytest.raises(ValueError, match=TOO_FEW):
        intra_prompt_diversity(np.zeros((3, 1, 2)))
