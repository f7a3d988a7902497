"""Captions are read back as they were meant."""

from __future__ import annotations

import random

import pytest
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
from stages.shapes_world.scenes import describe, sample_scene

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
