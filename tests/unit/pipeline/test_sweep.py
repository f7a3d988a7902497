"""Which trials a sweep consists of, and what is refused before they run."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest

from pipeline import sweep
from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.observe import Observer
from pipeline.sweep import make_trials, require_judged_alike, run_trials
from schemas.errors import ConfigError, StageFailed

SHAPES = partial(open_config, None, "shapes")
"""A configuration of settings."""


def test_every_combination_is_a_trial():
    trials = make_trials(
        SHAPES,
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
        SHAPES,
        ["distill.student_time.probabilities=[0.7,0.1,0.1,0.1],[0.25,0.25,0.25,0.25]"],
    )
    assert [t.config.distill.student_time.probabilities for t in trials] == [
        (0.7, 0.1, 0.1, 0.1),
        (0.25, 0.25, 0.25, 0.25),
    ]


def test_trials_of_one_training_follow_each_other_the_shortest_first(tmp_path):
    """Bug: run them side by side; then the lease of their training stops all but one."""
    settings = [f"store={tmp_path}", "distill.renoise.mean=0,1", "distill.steps=900,300,600"]
    trials = make_trials(SHAPES, settings)
    groups = sweep._by_training("distill", trials, ArtifactStore(str(tmp_path)))
    found = [[(t.config.distill.renoise.mean, t.config.distill.steps) for t in g] for g in groups]
    assert sorted(found) == [[(mean, steps) for steps in (300, 600, 900)] for mean in (0, 1)]


def test_one_at_a_time_varies_around_the_first_values():
    trials = make_trials(
        SHAPES,
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


def test_trials_of_several_sections_have_names_of_their_own():
    settings = ["distill.seed=0,1", "prompts.seed=0,1"]
    trials = make_trials(SHAPES, settings, one_at_a_time=True)
    assert [trial.name for trial in trials] == ["as configured", "seed=1", "prompts.seed=1"]


@pytest.mark.parametrize(
    "settings", [["distill.seed=0,0"], ["distill.global_batch=8", "distill.workers=1,2"]]
)
def test_two_trials_of_one_artifact_are_refused(settings, tmp_path):
    trials = make_trials(SHAPES, settings)
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(ConfigError, match="two trials make one artifact"):
        next(run_trials("distill", trials, store, Observer("text"), 2))
    assert not list(tmp_path.iterdir())


def test_a_trial_whose_data_cannot_be_made_does_not_stop_the_others(tmp_path, monkeypatch):
    def execute(config, store, stages, observer):
        if config.distill.seed == 1:
            raise StageFailed("no data")

    monkeypatch.setattr(sweep, "ray_cluster", lambda config, warn: contextlib.nullcontext())
    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setattr(sweep, "_run", lambda stage, trial, store, observer: trial.name)
    trials = make_trials(SHAPES, ["distill.seed=0,1,2"])
    ended = run_trials("distill", trials, ArtifactStore(str(tmp_path)), Observer("text"), 1)
    assert {trial.name: str(result) for trial, result in ended} == {
        "seed=1": "no data",
        "seed=0": "seed=0",
        "seed=2": "seed=2",
    }


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("prompts", "prompts.held_out_fraction=0.45,0.1"),
        ("synthesize", "synthesize.guidance_scale=3,2"),
        ("teacher", "teacher.dtype=float32,bfloat16"),
    ],
)
def test_trials_that_differ_in_what_they_are_judged_by_are_not_scored(section, setting):
    require_judged_alike(make_trials(SHAPES, ["distill.seed=0,1"]))
    with pytest.raises(ConfigError, match=f"{section} differs"):
        require_judged_alike(make_trials(SHAPES, [setting]))


@pytest.mark.parametrize("setting", ["distill.steps", "=3", "distill.steps=[1", "distill.steps="])
def test_a_setting_that_cannot_be_read_is_named(setting):
    with pytest.raises(ConfigError, match="--set"):
        make_trials(SHAPES, [setting])
