"""Precision and recall against balls of a tree.

By hand: on such features torch-fidelity 0.4's agree to seven digits.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KDTree

from stages.scores.manifold import precision, recall


def precision_recall(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    return precision(made, real), recall(made, real)


def test_neighbours_found_in_blocks_are_the_same(sets, monkeypatch):
    whole = precision_recall(*sets)
    monkeypatch.setattr("stages.scores.manifold._ROWS", 64)
    assert precision_recall(*sets) == whole


def test_precision_recall_equal_balls_of_a_tree(sets):
    def covered(points: np.ndarray, members: np.ndarray) -> float:
        reach = KDTree(members).query(members, k=4)[0][:, 3]
        distances = np.linalg.norm(points[:, None] - members, axis=-1)
        return (distances <= reach).any(1).mean()

    first, second = sets[0][:, :6], sets[1][:, :6]
    assert precision_recall(first, second) == pytest.approx(
        (covered(second, first), covered(first, second))
    )


def test_precision_sees_bad_pictures_and_recall_sees_missing_ones():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(400, 3))
    collapsed = real[real[:, 0] > 1.2]  # one corner of what is real
    inside, reached = precision_recall(real, collapsed)
    assert inside == 1.0 and reached < 0.4
    inside, reached = precision_recall(real, 4 * rng.normal(size=(400, 3)))
    assert inside < 0.6 and reached > 0.9
    assert precision_recall(real, real) == (1.0, 1.0)


TOO_FEW = r"needs? (at least|more)|too small|need more"


def test_too_few_pictures_for_neighbours_are_said_so():
    few = np.zeros((3, 2))
    with pytest.raises(ValueError, match=TOO_FEW):
        precision_recall(few, few)
