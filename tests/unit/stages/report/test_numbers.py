"""Numbers as a person writes them."""

from __future__ import annotations

import math

import pytest

from stages.report.numbers import duration, moment, number, percent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0041, "4.1 ms"), (0.512, "512 ms"), (4.1, "4.10 s"), (41, "41.0 s"), (119.6, "2 min 00 s"),
     (3600, "1 h 00 min"), (7499, "2 h 05 min"), (100_000, "1 d 4 h")],
)  # fmt: skip
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_numbers_read_as_in_print():
    assert [number(v) for v in (0.9041, -0.5, 12.345, 12345.6)] == [
        "0.904",
        "\N{MINUS SIGN}0.500",
        "12.35",
        "12,346",
    ]
    assert number(math.nan) == number(None) == "\N{EN DASH}"
    assert [percent(v)[:-2] for v in (0.6239, 0.994, 0.5)] == ["62", "99.4", "50"]
    assert moment("2025-11-23T14:35:12+01:00") == "23 November 2025, 13:35 UTC"
