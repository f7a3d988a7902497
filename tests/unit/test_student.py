"""In how many steps a finished student draws."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import load_config
from schemas.bucket import Bucket
from schemas.errors import ConfigError
from stages.judging import shapes_table
from stages.judging.shapes_table import REAL, at_steps, score_table, student_lines
from stages.ladd.sampling import step_counts, student_sigmas
from stages.pictures.student import draw_prompts

GRIDS = {4: [4, 2, 1], 5: [5, 3, 2, 1], 3: [3, 2, 1], 2: [2, 1], 1: [1]}


def grid_of(levels: int) -> list[float]:
    return [1 - 0.2 * i for i in range(levels)]


@pytest.mark.parametrize(("levels", "counts"), GRIDS.items())
def test_a_student_takes_the_numbers_of_steps_that_stay_on_its_grid(levels, counts):
    grid = grid_of(levels)
    assert step_counts(grid) == counts
    for n in range(1, levels + 1):
        off = [s for s in student_sigmas(grid, n) if min(abs(s - g) for g in grid) > 1e-6]
        assert (not off) == (n in counts)


@pytest.fixture
def student(tiny_teacher, tmp_path):
    """A student's folder on the default grid."""
    folder = tmp_path / "student"
    net = tiny_teacher.backbone()
    tiny_teacher.save_student(
        folder, lambda model: model.load_state_dict(net.state_dict()), [1.0, 0.75, 0.5, 0.25]
    )
    return folder


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_steps_off_the_grid_are_refused_before_anything_is_drawn(student, tmp_path, steps):
    with pytest.raises(ConfigError, match=f"--steps is {steps}, .* takes 4 or 2 or 1"):
        draw_prompts(student, ["a red circle"], steps, "32x32", 0, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()


def test_each_student_is_judged_at_the_steps_of_its_own_grid(monkeypatch):
    class Judge:
        def __init__(self, samples):
            pass

        def look(self, draw):
            features = np.random.default_rng(0).normal(size=(4, 3))
            return {Bucket(64, 64): shapes_table.Look(np.ones(4), features, features[None])}

    grids = {"three levels": grid_of(3), "four levels": grid_of(4)}
    monkeypatch.setattr(shapes_table, "Judge", Judge)
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
