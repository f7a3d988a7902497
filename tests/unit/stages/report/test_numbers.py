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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 ms"), (0.00996, "10 ms"), (0.0099, "9.9 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"),
     (9.994, "9.99 s"), (9.996, "10.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"),
     (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"), (86_369, "23 h 59 min"),
     (86_371, "1 d 0 h"), (math.inf, "\N{EN DASH}"), (math.nan, "\N{EN DASH}")],
)  # fmt: skip
def test_a_duration_that_is_rounded_up_takes_the_next_unit(seconds, text):
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_no_duration_has_sixty_of_a_unit():
    for tenth in range(1, 1_000_000, 7):
        said = duration(tenth / 10).replace("\N{NO-BREAK SPACE}", " ")
        assert not {"1000 ms", "60 s", "60.0 s", "60 min", "24 h"} & {
            said, " ".join(said.split(" ")[:2]), " ".join(said.split(" ")[2:])
        }, (tenth, said)  # fmt: skip


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
