"""Token embeddings packed without padding, and in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.token_rows import BLOCK, TokenLayout, from_8_bits, to_8_bits

SD3 = [(77, 2048)] * 1 + [(3, 4096)]
"""Runs of tokens and the columns that they use: CLIP's and some of T5's."""


def tokens_of(runs, columns, count=2, seed=0):
    rng = np.random.default_rng(seed)
    parts = []
    for tokens, width in runs:
        part = np.zeros((count, tokens, columns), np.float16)
        part[:, :, :width] = rng.standard_normal((count, tokens, width)) + 3
        parts.append(part)
    return np.concatenate(parts, axis=1)


def test_sd3_loses_the_zeros_that_pad_clip():
    tokens = tokens_of(SD3, 4096)
    layout = TokenLayout.of(tokens[0])
    assert layout.runs == ((77, 2048), (3, 4096))
    packed = layout.pack(tokens)
    assert packed.shape == (2, 77 * 2048 + 3 * 4096) and packed.dtype == np.float16
    assert np.array_equal(layout.unpack(packed), tokens)


@given(
    runs=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 200)), min_size=1, max_size=4),
    spare=st.integers(0, 100),
    count=st.integers(1, 3),
)
def test_whatever_is_packed_comes_back(runs, spare, count):
    columns = max(max(width for _, width in runs), 1) + spare
    tokens = tokens_of(runs, columns, count)
    layout = TokenLayout.of(tokens[0])
    assert TokenLayout.read(layout.written()) == layout
    packed = layout.pack(tokens)
    assert packed.shape[1] % BLOCK == 0
    assert np.array_equal(layout.unpack(packed), tokens)


def test_values_that_would_be_lost_are_refused():
    tokens = tokens_of([(2, 64)], 256)
    layout = TokenLayout.of(tokens[0])
    tokens[1, 0, 200] = 1
    with pytest.raises(ValueError, match="beyond its first 64 columns"):
        layout.pack(tokens)


def test_8_bits_round_to_levels_of_the_block():
    rng = np.random.default_rng(1)
    packed = (rng.standard_normal((3, 4 * BLOCK)) * [[1], [1e-3], [300]]).astype(np.float16)
    packed[0, :BLOCK] = 0
    codes, scales = to_8_bits(packed)
    assert codes.dtype == np.int8 and scales.shape == (3, 4)
    error = np.abs(from_8_bits(codes, scales).astype(float) - packed.astype(float))
    largest = np.abs(packed.astype(float)).reshape(3, 4, BLOCK).max(axis=2)
    assert (error.reshape(3, 4, BLOCK).max(axis=2) <= 0.0055 * largest + 1e-7).all()
    assert not from_8_bits(codes, scales)[0, :BLOCK].any()
