"""Colour and layout, measured without the judge."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stages.shapes_world.captions import parse
from stages.shapes_world.scenes import render, sample_scene
from tests.support.scores import BUCKETS, PROMPTS, captioned, noise, score


def test_layout_ranks_a_scenes_own_caption_above_another():
    layout, attributes = score("layout"), score("attributes")
    own, other = [], []
    for size in BUCKETS:
        pictures, captions = captioned(size, 40)
        shuffled = captions[7:] + captions[:7]
        false = attributes.judge(pictures, shuffled) == 0  # a few are true of the scene by chance
        own.append(layout.judge(pictures, captions)[false])
        other.append(layout.judge(pictures, shuffled)[false])
    own, other = np.concatenate(own), np.concatenate(other)
    assert len(own) > 150 and own.mean() > 0.95 and other.mean() < 0.6
    assert (own > other).mean() > 0.95


SCENE = "a big red circle left of a small blue square on gray"


@pytest.mark.parametrize(
    "changed",
    [
        "a big green circle left of a small blue square on gray",
        "a small red circle left of a small blue square on gray",
        "a big red circle right of a small blue square on gray",
        "a big red circle left of a small blue square on pink",
        "a big red circle on the left on gray",
    ],
)
def test_layout_falls_with_every_changed_attribute(changed):
    pictures = render([sample_scene(parse(SCENE), 64, 64, random.Random(i)) for i in range(12)])
    own = score("layout").judge(pictures, [SCENE] * 12)
    assert (own - score("layout").judge(pictures, [changed] * 12) > 0.07).all()
    assert own.min() > 0.9 and own.max() <= 1


def test_layout_is_graded_by_how_far_an_object_is_from_its_place():
    scene = sample_scene(parse("a small red circle on black"), 96, 40, random.Random(1))
    (thing,) = scene.objects
    pictures = []
    for x in (20, 44, 48, 52, 76):
        placed = type(thing)(**{**vars(thing), "x": float(x), "y": 20.0})
        pictures.append(render([type(scene)(**{**vars(scene), "objects": (placed,)})])[0])
    values = score("layout").judge(np.stack(pictures), ["a red circle on the left"] * 5)
    assert (np.diff(values) < 0).all()
    assert values[0] > 0.95 > 0.7 > values[-1]


def test_layout_of_pictures_without_objects_is_low_and_finite():
    flat = np.full((2, 64, 64, 3), 126, np.uint8)
    values = score("layout").judge(flat, ["a red circle on gray", "a ring and a cross"])
    assert 0 < values[0] < 0.5 and values[1] == 0
    assert np.isfinite(score("layout").judge(noise(2, 64, 64), PROMPTS[:2])).all()


def test_layout_is_not_the_judge():
    """A ring where a disc is due: the judge sees it, colour and layout are right all the same."""
    ring = render([sample_scene(parse("a red ring on gray"), 64, 64, random.Random(0))])
    assert score("attributes").judge(ring, ["a red circle on gray"]) == 0
    assert score("layout").judge(ring, ["a red circle on gray"]) > 0.95
