"""Steps that a student does not take are refused."""

from __future__ import annotations

import pytest

from schemas.errors import ConfigError
from stages.pictures.sample import draw_prompts
from tests.support.pairs import EVEN


@pytest.fixture
def student(tiny_teacher, tmp_path):
    """A student's folder on the default grid."""
    folder = tmp_path / "student"
    net = tiny_teacher.backbone()
    tiny_teacher.save_student(folder, lambda model: model.load_state_dict(net.state_dict()), EVEN)
    return folder


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_steps_off_the_grid_are_refused_before_anything_is_drawn(student, tmp_path, steps):
    with pytest.raises(ConfigError, match=f"--steps is {steps}, .* takes 4 or 2 or 1"):
        draw_prompts(student, ["a red circle"], steps, "32x32", 0, tmp_path / "drawn")
    assert not (tmp_path / "drawn").exists()
