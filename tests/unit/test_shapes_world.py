"""The shapes world: captions, scenes, judge."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.shapes_world.captions import (
    BACKGROUNDS,
    COLORS,
    MAX_WORDS,
    RELATIONS,
    SHAPES,
    SIZES,
    CaptionError,
    ObjectSpec,
    SceneSpec,
    parse,
    phrase,
    sample_spec,
    vocabulary,
)
from stages.shapes_world.judge import Seen, SeenObject, ShapesJudge, shown, shows_all
from stages.shapes_world.scenes import SCATTER, describe, render, sample_scene

BUCKETS = [(64, 64), (80, 48), (48, 80), (96, 40), (40, 96)]

things = st.builds(
    ObjectSpec,
    color=st.none() | st.sampled_from(COLORS),
    shape=st.none() | st.sampled_from(SHAPES),
    size=st.none() | st.sampled_from(SIZES),
)
pairs = st.builds(
    SceneSpec,
    objects=st.tuples(things, things),
    background=st.none() | st.sampled_from(BACKGROUNDS),
    relation=st.none() | st.sampled_from(RELATIONS),
)


@given(spec=pairs, seed=st.integers(0, 10**6))
def test_every_phrase_is_read_back_as_it_was_meant(spec, seed):
    text = phrase(spec, random.Random(seed))
    assert parse(text) == spec
    assert len(text.split()) <= MAX_WORDS
    assert set(text.split()) <= set(vocabulary())


@given(seed=st.integers(0, 10**6))
def test_sampled_specs_and_descriptions_survive_the_round_trip(seed):
    rng = random.Random(seed)
    spec = sample_spec(rng)
    assert parse(phrase(spec, rng)) == spec
    scene = sample_scene(spec, *rng.choice(BUCKETS), rng)
    said = describe(scene, rng)
    assert parse(phrase(said, rng)) == said


def test_parser_forgives_case_and_commas_and_names_what_it_cannot_read():
    assert parse("A Red circle, left of a BIG blue ring.").relation == "left"
    with pytest.raises(CaptionError, match="no word 'elephant'"):
        parse("a red elephant")
    with pytest.raises(CaptionError, match="one or two shapes, found 0"):
        parse("on a gray background")
    with pytest.raises(CaptionError, match="found 3"):
        parse("a ring and a cross and a square")


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
