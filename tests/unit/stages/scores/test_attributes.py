"""Attributes are right on real scenes."""

from __future__ import annotations

import numpy as np

from tests.support.scores import BUCKETS, captioned, score


def test_attributes_are_all_right_on_real_scenes_and_not_on_others():
    attributes = score("attributes")
    own, other = [], []
    for size in BUCKETS:
        pictures, captions = captioned(size, 30)
        own.append(attributes.judge(pictures, captions))
        other.append(attributes.judge(pictures, captions[1:] + captions[:1]))
    assert own[0].dtype == np.float64 and set(np.concatenate(own + other)) <= {0.0, 1.0}
    assert np.mean(own) >= 0.98 and np.mean(other) < 0.2
