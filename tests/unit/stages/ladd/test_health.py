"""The signs of a bad run, on metrics that show them, and what is done about them."""

from __future__ import annotations

import pytest

from stages.ladd.health import BEGINNING, WINDOW, HealthWatch, diversity_signs

GOOD = {
    "student_loss": 0.2,
    "student_grad_norm": 1.0,
    "heads_grad_norm": 0.5,
    "real_logit": 0.4,
    "fake_logit": 0.3,
}
BEHIND = GOOD | {"fake_logit": -0.1}
THROWN = BEHIND | {"heads_grad_norm": 1.6}
WON = GOOD | {"real_logit": 1.2, "fake_logit": -1.4}
HEADS_ALONE = {name: value for name, value in WON.items() if name != "student_grad_norm"}


def signs_of(rows, watch: HealthWatch | None = None) -> list[tuple[int, str]]:
    """The updates, counted from 1, at which signs are seen."""
    watch = watch or HealthWatch()
    return [(i, sign.name) for i, row in enumerate(rows, 1) for sign in watch.observe(row)]


def test_a_good_run_shows_no_sign():
    assert signs_of([GOOD] * 500) == []
    # Early on the student is ahead for a moment; at the end nobody can tell its pictures from data.
    swings = [GOOD | {"fake_logit": 0.6}] * 20 + [GOOD] * 80
    swings += [BEHIND] * 40 + [GOOD] * 60 + [GOOD | {"heads_grad_norm": 1.6}] * 200
    assert signs_of(swings + [GOOD | {"real_logit": 0.0, "fake_logit": 0.0}] * 300) == []


@pytest.mark.parametrize(
    ("sign", "at", "rows"),
    [
        ("collapse", WINDOW, [WON] * 400),
        ("ignorance", 2 * WINDOW, [GOOD | {"real_logit": 0.05, "fake_logit": 0.3}] * 400),
        ("fooled", 105, [BEHIND] * 60 + [GOOD | {"fake_logit": 0.8}] * 340),
        ("haste", BEGINNING + WINDOW, [HEADS_ALONE] * BEGINNING + [THROWN] * 400),
        ("ahead", 2 * WINDOW, [BEHIND] * 400),
        ("losing", 4 * WINDOW, [GOOD | {"student_loss": i / 100} for i in range(400)]),
    ],
)
def test_each_sign_is_told_once_as_soon_as_it_is_sure(sign, at, rows):
    assert signs_of(rows) == [(at, sign)]


def test_updates_in_which_the_student_does_not_learn_are_ignored():
    assert signs_of([HEADS_ALONE] * 400) == []
    assert signs_of([{"skipped": 1.0}] * 400) == []


def test_a_watch_that_has_seen_the_beginning_goes_on_as_an_undisturbed_one():
    rows = [GOOD] * 30 + [WON] * 300 + [GOOD | {"student_loss": i / 100} for i in range(300)]
    undisturbed = HealthWatch(lower_rate=True)
    expected = signs_of(rows, undisturbed)
    resumed = HealthWatch(lower_rate=True)
    before = signs_of(rows[:170], resumed)  # what a checkpoint's trace brings back
    after = [(170 + i, name) for i, name in signs_of(rows[170:], resumed)]
    assert before + after == expected and before and after
    assert resumed.rate_scale == undisturbed.rate_scale


def test_a_sign_lowers_the_rate_that_is_too_high_and_waits_a_window_for_the_effect():
    watch = HealthWatch(lower_rate=True)
    assert signs_of([WON] * (2 * WINDOW), watch) == [(50, "collapse"), (100, "collapse")]
    assert watch.rate_scale == {"student": 1.0, "heads": 0.25}
    (sign,) = (sign for _ in range(WINDOW) for sign in watch.observe(WON))
    assert sign.text.endswith("learning rates lowered to this share: heads 0.125")
    assert HealthWatch().rate_scale == {"student": 1.0, "heads": 1.0}


def looks(*distances: float) -> list[dict[str, float]]:
    return [{"held_out_distance": d, "teacher_distance": 0.01} for d in distances]


def test_a_student_has_drifted_when_two_looks_find_it_far_off():
    assert signs_of(looks(0.4, 0.1, 0.5, 0.2, 0.31, 0.4, 0.7)) == [(6, "drift")]
    assert signs_of(looks(0.4, 0.3, 0.2, 0.7, 0.25, 0.5, 0.55)) == []
    # Near the floor a distance is noise.
    assert signs_of(looks(0.4, 0.001, 0.02, 0.025, -0.001)) == []


def test_diversity_below_half_of_the_teachers_is_told():
    assert diversity_signs(1.0, 1.2) == []
    assert diversity_signs(0.3, 1.0)[0].text.startswith("pictures of one prompt differ 30%")
