"""Scenes and their rendering."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stages.shapes_world.captions import (
    parse,
    sample_spec,
)
from stages.shapes_world.scenes import SCATTER, render, sample_scene

BUCKETS = [(64, 64), (80, 48), (48, 80), (96, 40), (40, 96)]


@pytest.mark.parametrize("size", BUCKETS)
def test_rendering_is_deterministic_and_of_the_right_size(size):
    pictures = [
        render(
            [sample_scene(sample_spec(random.Random(i)), *size, random.Random(i)) for i in range(4)]
        )
        for _ in range(2)
    ]
    assert pictures[0].shape == (4, size[1], size[0], 3) and pictures[0].dtype == np.uint8
    assert np.array_equal(*pictures)


def test_caption_leaves_the_rest_of_the_scene_open():
    spec = parse("a red circle on gray")
    pictures = render([sample_scene(spec, 64, 64, random.Random(i)) for i in range(8)]).astype(
        float
    )
    assert np.abs(pictures[0] - pictures[1:]).mean((1, 2, 3)).min() > 2


@pytest.mark.parametrize("size", BUCKETS)
def test_a_stated_place_leaves_the_exact_place_open(size):
    spec = parse("a big red ring at the top")
    scenes = [sample_scene(spec, *size, random.Random(i)) for i in range(60)]
    x = [scene.objects[0].x for scene in scenes]
    assert 0.5 * SCATTER < max(x) - min(x) <= 2 * SCATTER


def test_scenes_for_the_judge_lie_anywhere():
    spec = parse("a small red ring")
    scenes = [sample_scene(spec, 64, 64, random.Random(i), scatter=None) for i in range(200)]
    x = [scene.objects[0].x for scene in scenes]
    assert min(x) < 12 and max(x) > 52
    assert len({round(value / 8) for value in x}) >= 6
