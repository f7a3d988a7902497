"""Who is judged at how many steps, and what cannot be judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.commands.opening import open_config
from pipeline.config import load_config
from schemas.bucket import Bucket
from schemas.errors import ConfigError
from stages.judging import shapes_table
from stages.judging.shapes_table import (
    REAL,
    Judged,
    at_steps,
    held_out,
    score_table,
    student_lines,
)
from stages.ladd.grid import StudentGrid


def grid_of(levels: int) -> StudentGrid:
    return StudentGrid(tuple(1 - 0.2 * i for i in range(levels)))


@pytest.mark.slow
def test_each_student_is_judged_at_the_steps_of_its_own_grid(monkeypatch):
    class Examiner:
        def __init__(self, samples):
            pass

        def look(self, draw):
            features = np.random.default_rng(0).normal(size=(4, 3))
            return {Bucket(64, 64): shapes_table.Look(np.ones(4), features, features[None])}

    grids = {"three levels": grid_of(3), "four levels": grid_of(4)}
    monkeypatch.setattr(shapes_table, "Examiner", Examiner)
    monkeypatch.setattr(shapes_table, "open_student", lambda title: (None, grids[title]))
    config = load_config(preset="shapes")
    rows = score_table(config, {title: title for title in grids}, 500, lambda text: None)
    assert {line.student: list(line.attributes) for line in student_lines(rows, list(grids))} == {
        "three levels": [3, 2, 1],
        "four levels": [4, 2, 1],
    }
    beside = {row.steps for row in rows if row.pictures.startswith("teacher, ")}
    assert beside == {config.synthesize.steps, 4, 3, 2, 1}
    assert [row.pictures for row in rows if row.steps == 0] == [REAL]
    assert at_steps("three levels", 4) not in {row.pictures for row in rows}


@pytest.mark.parametrize(
    ("preset", "settings", "count", "words"),
    [
        ("shapes", ["prompts.held_out_fraction=0"], 500, "nothing to judge on"),
        ("shapes", ["prompts.held_out_fraction=0.0001"], 500, "of the 500 to judge on"),
        ("shapes", [], 5, "fewer than two"),
        ("shapes", [], 0, "0 held-out prompts are too few to judge on"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_judged_is_refused(preset, settings, count, words):
    sources = ["prompts.sources=[{kind: file, url: prompts.txt}]"] * (preset == "sd3-medium")
    with pytest.raises(ConfigError, match=words):
        held_out(open_config(None, preset, [*settings, *sources]), count)


def test_a_distance_that_is_missing_is_not_zero():
    rows = [
        Judged(at_steps("student", n), n, 0.5, frechet, 0.2, {"64x64": 0.5}, {})
        for n, frechet in ((4, None), (2, 0.0), (1, 1.5))
    ]
    (line,) = student_lines(rows, ["student"])
    assert math.isnan(line.frechet[4])
    assert (line.frechet[2], line.frechet[1]) == (0.0, 1.5)
