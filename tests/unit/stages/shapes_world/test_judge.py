"""The judge of the shapes world."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stages.shapes_world.captions import (
    parse,
    sample_spec,
)
from stages.shapes_world.judge import Seen, SeenObject, ShapesJudge, shown, shows_all
from stages.shapes_world.scenes import render, sample_scene

BUCKETS = [(64, 64), (80, 48), (48, 80), (96, 40), (40, 96)]


def seen(*objects, background="gray"):
    return Seen(64, 64, tuple(SeenObject(*thing) for thing in objects), background)


RED_CIRCLE, BLUE_RING = ("red", "circle", "small", 10.0, 30.0), ("blue", "ring", "big", 50.0, 32.0)


def test_matching_takes_the_best_assignment():
    spec = parse("a red circle left of a big blue ring on gray")
    assert shows_all(seen(BLUE_RING, RED_CIRCLE), spec)
    result = shown(seen(RED_CIRCLE, BLUE_RING), parse("a blue ring left of a red circle"))
    assert [name for name, right in result.items() if not right] == ["relation"]


@pytest.mark.parametrize(
    ("prompt", "wrong"),
    [
        ("a red circle", {"count"}),
        ("a green circle and a ring", {"color_0"}),
        ("a circle and a small ring on pink", {"size_1", "background"}),
        ("a circle above a ring", set()),
        ("a circle right of a ring", {"relation"}),
    ],
)
def test_every_stated_attribute_is_judged(prompt, wrong):
    result = shown(seen(RED_CIRCLE, BLUE_RING), parse(prompt))
    assert {name for name, right in result.items() if not right} == wrong


@pytest.mark.parametrize(
    ("place", "right"), [("left", True), ("right", False), ("top", True), ("middle", False)]
)
def test_place_is_judged_by_the_halves_of_the_picture(place, right):
    where = {
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "middle": "in the middle",
    }[place]
    assert shows_all(seen(RED_CIRCLE), parse(f"a circle {where}")) is right


def test_judge_is_right_on_real_scenes_of_every_bucket():
    from stages.teachers.shapes import WEIGHTS

    judge = ShapesJudge.load(WEIGHTS / "judge.safetensors")
    right = []
    for size in BUCKETS:
        specs = [sample_spec(random.Random(f"test/{size}/{i}")) for i in range(60)]
        pictures = render([sample_scene(s, *size, random.Random(i)) for i, s in enumerate(specs)])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        right += map(shows_all, judge.look(pixels), specs)
    assert np.mean(right) >= 0.99


def test_judge_finds_nothing_in_noise():
    from stages.teachers.shapes import WEIGHTS

    judge = ShapesJudge.load(WEIGHTS / "judge.safetensors")
    flat = torch.zeros(2, 3, 64, 64)
    assert not any(shows_all(x, parse("a red circle")) for x in judge.look(flat))
