"""FID, KID, CMMD, precision, recall and diversity against the libraries that define them.

One that is no dependency was tried by hand: on such features torch-fidelity 0.4's FID, KID of
subsets (mean and deviation), precision and recall agree with ours to seven digits.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KDTree
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from stages.scores.diversity import intra_prompt_diversity
from stages.scores.frechet import frechet_distance
from stages.scores.kernel import cmmd, kid, kid_of_subsets
from stages.scores.manifold import precision_recall
from stages.scores.patches import centre_patches, patch_side, patches_of


class Given(nn.Module):
    """A feature extractor whose features are the pictures, for torchmetrics."""

    num_features = 24

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features that differ in number, place and spread."""
    rng = np.random.default_rng(0)
    mix = np.eye(24) + 0.2 * rng.normal(size=(24, 24))
    return rng.normal(size=(300, 24)), rng.normal(size=(250, 24)) @ mix + 0.1


def by_torchmetrics(metric, first: np.ndarray, second: np.ndarray):
    metric = metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    return metric.compute()


def test_fid_equals_torchmetrics(sets):
    expected = by_torchmetrics(FrechetInceptionDistance(feature=Given()), *sets)
    assert frechet_distance(*sets) == pytest.approx(expected.item(), rel=1e-3)


def test_kid_equals_torchmetrics_on_the_whole_sets(sets):
    first, second = sets[0][:250], sets[1]
    metric = KernelInceptionDistance(feature=Given(), subsets=2, subset_size=250)
    mean, deviation = by_torchmetrics(metric, first, second)
    assert deviation < 1e-9
    assert kid(first, second) == pytest.approx(mean.item(), rel=1e-6)


def test_kid_of_subsets_equals_torchmetrics_on_the_same_subsets(sets):
    rng = np.random.RandomState(2020)
    expected = []
    for _ in range(20):
        parts = [x[rng.choice(len(x), 100, replace=False)] for x in sets]
        expected.append(poly_mmd(*(torch.from_numpy(part) for part in parts)).item())
    mean, deviation = kid_of_subsets(*sets, subsets=20, subset_size=100)
    assert mean == pytest.approx(np.mean(expected), rel=1e-6)
    assert deviation == pytest.approx(np.std(expected), rel=1e-6)


def test_kid_of_sets_of_unequal_size_is_unbiased():
    rng = np.random.default_rng(1)
    values = [kid(rng.normal(size=(20, 4)), rng.normal(size=(33, 4))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_cmmd_equals_scikit_learns_kernel(sets):
    x, y = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in sets)
    kernel = {"gamma": 1 / (2 * 10**2)}
    within = rbf_kernel(x, **kernel).mean() + rbf_kernel(y, **kernel).mean()
    expected = 1000 * (within - 2 * rbf_kernel(x, y, **kernel).mean())
    assert expected > 0.01
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-6)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_kernels_summed_in_blocks_are_the_same(sets, monkeypatch):
    whole = kid(*sets), cmmd(*sets), precision_recall(*sets)
    monkeypatch.setattr("stages.scores.kernel._ROWS", 64)
    monkeypatch.setattr("stages.scores.manifold._ROWS", 64)
    parts = kid(*sets), cmmd(*sets), precision_recall(*sets)
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-9)
    assert parts[2] == whole[2]


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
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1.0 and recall < 0.4
    precision, recall = precision_recall(real, 4 * rng.normal(size=(400, 3)))
    assert precision < 0.6 and recall > 0.9
    assert precision_recall(real, real) == (1.0, 1.0)


def test_diversity_is_the_mean_distance_of_pairs():
    features = np.random.default_rng(3).normal(size=(5, 4, 7)).astype(np.float32)
    expected = np.mean([pdist(one).mean() for one in features])
    assert intra_prompt_diversity(features) == pytest.approx(expected, rel=1e-6)
    assert intra_prompt_diversity(features[:, [0, 0]]) == 0


@given(
    batch=st.integers(1, 3),
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    side=st.integers(8, 16),
)
def test_patches_are_cut_from_the_middle_and_do_not_overlap(batch, height, width, side):
    numbers = np.arange(batch * height * width).reshape(batch, height, width, 1).repeat(3, -1)
    centre, grid = centre_patches(numbers, side), patches_of(numbers, side)
    assert centre.shape == (batch, side, side, 3)
    assert centre[0, 0, 0, 0] == (height - side) // 2 * width + (width - side) // 2
    assert grid.shape == (batch * (height // side) * (width // side), side, side, 3)
    assert len(np.unique(grid)) == grid[..., 0].size
    assert (grid[0, :, 1:] - grid[0, :, :-1] == 1).all()
    assert (grid[0, 1:] - grid[0, :-1] == width).all()


def test_side_of_patches():
    assert [patch_side(*size) for size in [(1024, 1024), (64, 64), (96, 40)]] == [299, 32, 16]
    assert patches_of(np.zeros((2, 48, 80, 3))).shape == (12, 24, 24, 3)
    assert centre_patches(np.zeros((2, 48, 80, 3))).shape == (2, 24, 24, 3)


def test_too_few_pictures_are_said_so():
    few = np.zeros((3, 2))
    for call in (
        lambda: kid(few[:1], few),
        lambda: kid_of_subsets(few, few, subset_size=4),
        lambda: cmmd(few, few[:0]),
        lambda: precision_recall(few, few),
        lambda: intra_prompt_diversity(few[:, None]),
        lambda: patch_side(100, 15),
    ):
        with pytest.raises(ValueError, match=r"needs? (at least|more)|too small|need more"):
            call()
