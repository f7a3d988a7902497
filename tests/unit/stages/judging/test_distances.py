"""Distances: their intervals cover what they should, and too few pictures have no figure."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.config import ScoreConfig
from stages.judging.distances import GROUPS, distance, distances_of, too_few
from stages.judging.drawn import Drawn
from stages.judging.measures import Measure, measures_of
from tests.support.held_out import configured

PROMPTS, WIDTH = 60, 3


def pictures(rng: np.random.Generator, mean: float, spread: float, count: int = PROMPTS):
    return mean + spread * rng.normal(size=(count, WIDTH))


@pytest.mark.parametrize("kind", ["fid", "kid", "cmmd", "recall"])
@pytest.mark.parametrize(("mean", "spread"), [(0.8, 0.7), (0.0, 1.0)])
def test_an_interval_covers_the_distance_at_this_number_of_pictures(kind, mean, spread):
    """Gaussians apart, and one and the same: what 95 % of the intervals hold is the mean of the
    distance over all draws. Bug: bootstrap the prompts instead; of KID's intervals 77 % hold it.
    """
    rng = np.random.default_rng(0)
    found = [
        distance(kind, pictures(rng, mean, spread), pictures(rng, 0, 1), np.arange(PROMPTS))
        for _ in range(120)
    ]
    truth = np.mean([interval.mean for interval in found])
    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert covered >= 0.88  # 95 % less three deviations of 120 draws
    reach = np.mean([interval.high - interval.low for interval in found]) / 2
    assert reach < 4 * np.std([interval.mean for interval in found])


def test_pictures_of_one_prompt_stay_together():
    """Bug: deal the rows to the groups, not the prompts; copies then narrow the interval."""
    rng = np.random.default_rng(1)
    mine, theirs = pictures(rng, 0.5, 1), pictures(rng, 0, 1)
    once = distance("cmmd", mine, theirs, np.arange(PROMPTS))
    copied = [np.repeat(rows, 4, axis=0) for rows in (mine, theirs, np.arange(PROMPTS))]
    thrice = distance("cmmd", *copied)
    assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((once.mean, once.low, once.high))


def drawn(count: int, crops: int, seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    return Drawn(
        rows=[{}] * count,
        scores={},
        features={"wide": rng.normal(size=(count, 24)), "narrow": rng.normal(size=(count, 4))},
        patches=rng.normal(size=(count * crops, 24)),
        patch_owners=np.repeat(np.arange(count), crops),
        alike_PSF=None,
    )


MEASURES = [
    Measure("fid", "fid", "wide"),
    Measure("patch_fid", "patch_fid", "wide"),
    Measure("kid", "kid", "wide"),
    Measure("fid_narrow", "fid", "narrow"),
]


@pytest.mark.parametrize(
    ("count", "measured"),
    [
        (25, {"fid", "patch_fid", "kid", "fid_narrow"}),
        (24, {"patch_fid", "kid", "fid_narrow"}),
        (GROUPS - 1, {"patch_fid"}),
        (6, set()),
    ],
)
def test_a_distance_needs_pictures_enough(count, measured):
    """The covariance of 24 pictures in 24 dimensions has no full rank; 25 have."""
    mine = drawn(count, 4 if count > 10 else 1)
    assert distances_of(mine, mine, MEASURES).keys() == measured
    assert too_few(mine, MEASURES).keys() == {m.name for m in MEASURES} - measured
    if count == 24:
        assert too_few(mine, MEASURES) == {"fid": "24 pictures, needs at least 25"}


def test_a_bucket_is_measured_on_its_own_pictures():
    mine, other = drawn(60, 2), drawn(60, 2, seed=1)
    rows = np.arange(60) % 2 == 0
    (found,) = distances_of(mine, other, MEASURES[2:3], rows=rows).values()
    own, theirs = mine.features["wide"][rows], other.features["wide"][rows]
    assert found == distance("kid", own, theirs, np.arange(30))


def test_clip_measures_cmmd_alone_beside_another_space():
    spaces = [ScoreConfig(name="clip_features"), ScoreConfig(name="inception_features")]
    config = configured().eval.model_copy(update={"more_features": spaces})
    by_name = {measure.name: measure.space for measure in measures_of(config)}
    assert [name for name, space in by_name.items() if space == "clip_features"] == ["cmmd"]
    assert by_name["fid"] == by_name["recall"] == "judge_features"
    assert by_name["kid_inception_features"] == "inception_features"
    assert {m.space for m in measures_of(configured().eval)} == {"judge_features"}
