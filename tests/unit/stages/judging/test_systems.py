"""Which systems an evaluation compares."""

from __future__ import annotations

import pytest

from pipeline.commands.opening import open_config
from stages.judging.systems import FLOOR, plan_shards, systems_of


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


def test_without_tuning_no_tuned_student_is_judged():
    config = open_config(preset="shapes", settings=["eval.tuned=false"], environment={})
    assert {system.kind for system in systems_of(config)} == {"teacher", "student"}


def test_the_floor_has_the_same_prompts_and_seeds_of_its_own():
    """Bug: give the floor the seeds of the diversity; it then shares pictures with the teacher."""
    config = config_of(4, [1])
    samples = [
        {"key": f"{i}-000", "prompt": f"p{i}", "seed": i, "bucket": "64x64"} for i in range(9)
    ]
    shards = plan_shards(samples, systems_of(config), config).values()
    (floor,) = [shard for shard in shards if shard.system == FLOOR]
    assert [sample["prompt"] for sample in floor.samples] == [s["prompt"] for s in samples]
    others = {s["seed"] for shard in shards if shard.system != FLOOR for s in shard.samples}
    assert not others & {sample["seed"] for sample in floor.samples}
    off = open_config(preset="shapes", settings=["eval.floor=false"], environment={})
    assert FLOOR not in {s.system for s in plan_shards(samples, systems_of(off), off).values()}


def test_steps_that_are_named_twice_are_judged_once():
    systems = systems_of(config_of(20, [4, 4, 1]))
    assert [s.steps for s in systems if s.kind == "student"] == [4, 1]
