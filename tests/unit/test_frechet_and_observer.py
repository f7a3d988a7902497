"""Fréchet distance against scipy's matrix root, and what a person sees while stages run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.observe import Observer
from stages.pictures.contact_sheet import draw_grid
from stages.scores.frechet import frechet_distance


def test_frechet_distance_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 6)), rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 0.3
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        one + two - 2 * sqrtm(one @ two).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_a_set_to_itself_and_to_a_shifted_one():
    x = np.random.default_rng(0).normal(size=(100, 3))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 0, 4])) == pytest.approx(25)
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(x, x[:1])


def test_progress_is_a_line_every_thirty_seconds_with_rate_and_time_left(capsys):
    now = iter([0.0, 10.0, 31.0, 40.0])
    observer = Observer(clock=lambda: next(now))
    for done in (0, 5, 31, 100):
        observer.progress("encode", "shards", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2].startswith("encode  31/100 shards  1.00/s  1:09 left")
    assert lines[-1].startswith("encode  100/100 shards")


def test_json_log_and_warnings(capsys):
    observer = Observer(log_format="json")
    observer.progress("distill", "warning: collapse", 3, 9)
    row = json.loads(capsys.readouterr().err)
    assert (row["event"], row["stage"], row["text"]) == ("warning", "distill", "collapse")
    assert observer.events == [row]


def test_text_of_users_is_not_taken_for_markup(capsys):
    Observer().event("failed", stage="x", error="[bold]no[/bold] [link=http://x]y")
    assert "[bold]no[/bold] [link=http://x]y" in capsys.readouterr().err


RED, GREEN = (200, 10, 20), (10, 190, 30)


def test_grid_holds_every_picture_of_every_size():
    import io

    from PIL import Image

    wide, tall = (np.full((*s, 3), v, np.uint8) for s, v in (((40, 96), RED), ((96, 40), GREEN)))
    sheet = np.asarray(
        Image.open(
            io.BytesIO(
                draw_grid(["one", "two"], [("<b>x</b> " * 9, [wide] * 2), ("y", [tall] * 2)])
            )
        )
    )
    for value in (RED, GREEN):
        assert (sheet == value).all(-1).sum() == 2 * 40 * 96 * 4
