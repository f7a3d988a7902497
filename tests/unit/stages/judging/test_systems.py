"""Which systems an evaluation compares."""

from __future__ import annotations

import pytest

from pipeline.commands.opening import open_config
from stages.judging.systems import systems_of


def config_of(steps: int, student_steps: list[int]):
    settings = [f"synthesize.steps={steps}", f"eval.student_steps={student_steps}"]
    return open_config(preset="shapes", settings=settings, environment={})


@pytest.mark.parametrize("steps", [1, 2, 4, 28])
def test_no_title_and_no_system_is_listed_twice(steps):
    """Bug: leave out `if n != own` in `systems_of`."""
    systems = systems_of(config_of(steps, [1, 2, 4]))
    titles = [system.title for system in systems]
    assert len(set(titles)) == len(titles)
    assert len({system.name for system in systems}) == len(systems)
    assert systems[0].name == "teacher" and systems[0].steps == steps
    teachers = {system.steps for system in systems if system.kind == "teacher"}
    assert teachers == {steps, 1, 2, 4}


def test_steps_that_are_named_twice_are_judged_once():
    systems = systems_of(config_of(20, [4, 4, 1]))
    assert [s.steps for s in systems if s.kind == "student"] == [4, 1]
