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
