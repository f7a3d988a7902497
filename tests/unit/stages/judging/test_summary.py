"""Intervals cover the mean as often as they say."""

from __future__ import annotations

import numpy as np

from schemas.report import Interval
from stages.judging.summary import interval_of
from tests.support.held_out import configured


def test_an_interval_covers_the_mean_as_often_as_it_says():
    config = configured("eval.bootstrap=400").eval
    rng = np.random.default_rng(0)
    found = [interval_of((rng.random(60) < 0.3).astype(float), config) for _ in range(200)]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in found])
    assert 0.88 <= covered <= 0.99
    assert interval_of(np.ones(5), config) == Interval(mean=1, low=1, high=1)
