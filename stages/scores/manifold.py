"""Precision and recall of a set of pictures (Kynkäänniemi et al. 2019)."""

from __future__ import annotations

import numpy as np

_ROWS = 1024
"""Rows in one block of distances: memory stays linear in N."""


def precision(made_NF: np.ndarray, real_MF: np.ndarray, *, neighbours: int = 3) -> float:
    """Return the share of made features inside the real set's manifold, 0 to 1, higher is better.

    A set's manifold is the union of balls around its members, each reaching to the member's k-th
    nearest neighbour (k is `neighbours`).

    Raises ValueError unless each set has more than k members.
    """
    if min(len(real_MF), len(made_NF)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more than {neighbours} "
            f"pictures in each set, got {len(real_MF)} and {len(made_NF)}"
        )
    return _covered(np.asarray(made_NF, np.float64), np.asarray(real_MF, np.float64), neighbours)


def recall(made_NF: np.ndarray, real_MF: np.ndarray, *, neighbours: int = 3) -> float:
    """Return the share of real features inside the made set's manifold: `precision` with the sets
    exchanged.
    """
    return precision(real_MF, made_NF, neighbours=neighbours)


def _covered(points: np.ndarray, members: np.ndarray, neighbours: int) -> float:
    """The share of points inside the manifold of `members`."""
    squared_reach = np.concatenate(
        [
            # Each member is its own nearest neighbour, so the k-th other one is at index k.
            np.partition(_squared_distances(block, members), neighbours, axis=1)[:, neighbours]
            for block in _blocks(members)
        ]
    )
    inside = [
        (_squared_distances(block, members) <= squared_reach).any(1) for block in _blocks(points)
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
