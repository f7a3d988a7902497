"""KID and CMMD against torchmetrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel
from torchmetrics.image.kid import KernelInceptionDistance

from stages.scores.kernel import cmmd, kid, paired_kid
from tests.support.metrics import Given, by_torchmetrics


def test_kid_equals_torchmetrics_on_the_whole_sets(sets):
    first, second = sets[0][:250], sets[1]
    metric = KernelInceptionDistance(feature=Given(), subsets=2, subset_size=250)
    mean, deviation = by_torchmetrics(metric, first, second)
    assert deviation < 1e-9
    assert kid(first, second) == pytest.approx(mean.item(), rel=1e-6)


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
    whole = kid(*sets), cmmd(*sets)
    monkeypatch.setattr("stages.scores.kernel._ROWS", 64)
    assert (kid(*sets), cmmd(*sets)) == pytest.approx(whole, rel=1e-9)


TOO_FEW = r"needs? (at least|more)|too small|need more"


def test_too_few_pictures_for_a_kernel_are_said_so():
    few = np.zeros((3, 2))
    for call in (
        lambda: kid(few[:1], few),
        lambda: cmmd(few, few[:0]),
    ):
        with pytest.raises(ValueError, match=TOO_FEW):
            call()


def test_kid_of_pairs_is_unbiased_where_pictures_of_one_prompt_are_alike():
    """Bug: take `kid` for pictures of the same prompts; two samplers that are one then seem closer
    than they can be.
    """
    rng = np.random.default_rng(3)
    paired, plain = [], []
    for _ in range(200):
        prompt = rng.normal(size=(30, 4))
        first, second = (prompt + 0.3 * rng.normal(size=(30, 4)) for _ in range(2))
        paired.append(paired_kid(first, second))
        plain.append(kid(first, second))
    error = np.std(paired) / np.sqrt(200)
    assert abs(np.mean(paired)) < 3 * error
    assert np.mean(plain) < -10 * error
    x, y = first[:5], second[:5]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / 4 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    h = [
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i, j in pairs
    ]
    assert paired_kid(x, y) == pytest.approx(np.mean(h))
    assert paired_kid(x, x) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="5 and 4 pictures are not paired"):
        paired_kid(x, y[:4])
