"""Cleaning, splits, buckets and seeds follow from a prompt's text alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.texts.identity import bucket_of, clean, prompt_id, seed_of, split_of


@given(st.text())
def test_cleaning_is_idempotent_and_leaves_no_control_characters(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert cleaned == cleaned.strip() and "  " not in cleaned
    assert not any(ord(c) < 32 for c in cleaned)


def test_cleaning_composes_unicode_and_folds_white_space():
    assert clean("cafe\u0301\t\n  noir\u2028\x00!") == "café noir !"


def test_half_of_a_surrogate_pair_is_cut_off():
    """JavaScript leaves one where it cuts a text in an emoji, and JSON carries it."""
    cut = json.loads('"a red ring \\ud83d"')
    assert clean(cut) == "a red ring" and prompt_id(clean(cut))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("\ufeffa red\u200b cir\u00adcle\u2060", "a red circle"),
        ("a red\u200d cir\u200ccle\ufe0f", "a red circle"),
        ("a \u200fred\u202e ring\u2069", "a red ring"),
        ("e\u200d\u0301", "é"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
        ("क्\u200dष", "क्\u200dष"),
        ("a \U0001f469\u200d\U0001f4bb at work", "a \U0001f469\u200d\U0001f4bb at work"),
        ("\u2764\ufe0f and 1\ufe0f\u20e3", "\u2764\ufe0f and 1\ufe0f\u20e3"),
        ("\U0001f469\u200d x", "\U0001f469 x"),
    ],
)
def test_invisible_characters_stay_only_where_they_say_something(text, cleaned):
    assert clean(text) == cleaned


def test_what_nobody_sees_tells_no_prompts_apart():
    """Bug: hash the text as it is; then a joiner moves a held-out prompt into the training."""
    family, plain = "\U0001f469\u200d\U0001f467", "\U0001f469\U0001f467"
    assert clean(family) != clean(plain)
    assert prompt_id(family) == prompt_id(plain) and seed_of(0, family, 1) == seed_of(0, plain, 1)
    assert all(split_of(family, i / 50) == split_of(plain, i / 50) for i in range(51))


def test_ids_of_ordinary_prompts_stay():
    assert prompt_id("a red circle") == "a1e4a280d27cad5b"
    assert prompt_id("grün ☃") == "34cf5a1087b805ce"


def test_splits_and_buckets_follow_their_shares():
    texts = [f"prompt {i}" for i in range(4000)]
    held = np.mean([split_of(t, 0.2) == "held_out" for t in texts])
    wide = np.mean([bucket_of(t, {"64x64": 3, "96x40": 1}) == "96x40" for t in texts])
    assert held == pytest.approx(0.2, abs=0.03) and wide == pytest.approx(0.25, abs=0.03)


def test_seeds_belong_to_samples():
    seeds = {seed_of(0, prompt, image) for prompt in ("a", "b") for image in range(5)}
    assert len(seeds) == 10
    assert seed_of(0, "a", 1) == seed_of(0, "a", 1) != seed_of(1, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
