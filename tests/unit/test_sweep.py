"""Which trials a sweep consists of."""

from __future__ import annotations

import pytest

from pipeline.sweep import make_trials
from schemas.errors import ConfigError


def test_every_combination_is_a_trial():
    trials = make_trials(
        None,
        "shapes",
        ["distill.renoise.mean=0,0.5,1", "distill.steps=7", "distill.objective.r1_weight=0,1e2"],
    )
    assert len(trials) == 6
    assert {trial.config.distill.steps for trial in trials} == {7}
    assert {
        (t.config.distill.renoise.mean, t.config.distill.objective.r1_weight) for t in trials
    } == {(mean, weight) for mean in (0, 0.5, 1) for weight in (0, 100)}
    assert len({trial.name for trial in trials}) == 6
    assert "steps" not in trials[0].name


def test_lists_are_values_of_their_own():
    trials = make_trials(
        None,
        "shapes",
        ["distill.student_time.probabilities=[0.7,0.1,0.1,0.1],[0.25,0.25,0.25,0.25]"],
    )
    assert [t.config.distill.student_time.probabilities for t in trials] == [
        (0.7, 0.1, 0.1, 0.1),
        (0.25, 0.25, 0.25, 0.25),
    ]


def test_one_at_a_time_varies_around_the_first_values():
    trials = make_trials(
        None,
        "shapes",
        ["distill.renoise.mean=0.5,0,1", "distill.steps=7", "distill.renoise.std=1,2"],
        one_at_a_time=True,
    )
    seen = [(t.config.distill.renoise.mean, t.config.distill.renoise.std) for t in trials]
    assert seen == [(0.5, 1), (0, 1), (1, 1), (0.5, 2)]
    assert {trial.config.distill.steps for trial in trials} == {7}
    assert [trial.name for trial in trials] == [
        "as configured",
        "renoise.mean=0",
        "renoise.mean=1",
        "renoise.std=2",
    ]


@pytest.mark.parametrize("setting", ["distill.steps", "=3", "distill.steps=[1"])
def test_a_setting_that_cannot_be_read_is_named(setting):
    with pytest.raises(ConfigError, match="--set"):
        make_trials(None, "shapes", [setting])
