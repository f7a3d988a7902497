"""A sample depends on its seed alone."""

from __future__ import annotations

import torch

from stages.ladd.sampling import initial_noise


def test_a_sample_does_not_depend_on_its_batch():
    together, _ = initial_noise([1, 2, 3], (4, 8, 8))
    alone, _ = initial_noise([2], (4, 8, 8))
    assert torch.equal(together[1:2], alone)
