"""Bytes in words are the same wherever they are printed."""

from __future__ import annotations

import pytest

from pipeline.base.sizes import size_text


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (12, 3, "12 B"),
        (2.84e7, 3, "28.4 MB"),
        (999_999, 3, "1 MB"),
        (3.2e13, 3, "32 TB"),
        (1.3988e11, 4, "139.9 GB"),
        (999_960, 4, "1 MB"),
    ],
)
def test_sizes(number, digits, text):
    assert size_text(number, digits) == text
