"""Which trials a sweep consists of, and what is refused before they run."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import pytest

from pipeline import cli, sweep
from pipeline.base.store import ArtifactStore
from pipeline.config import load_config
from pipeline.observe import Observer
from pipeline.sweep import make_trials, require_judged_alike, run_trials
from schemas.errors import ConfigError, StageFailed
from stages.judging.shapes_table import held_out


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


def test_trials_of_several_sections_have_names_of_their_own():
    settings = ["distill.seed=0,1", "prompts.seed=0,1"]
    trials = make_trials(None, "shapes", settings, one_at_a_time=True)
    assert [trial.name for trial in trials] == ["as configured", "seed=1", "prompts.seed=1"]


@pytest.mark.parametrize(
    "settings", [["distill.seed=0,0"], ["distill.global_batch=8", "distill.workers=1,2"]]
)
def test_two_trials_of_one_artifact_are_refused(settings, tmp_path):
    trials = make_trials(None, "shapes", settings)
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(ConfigError, match="two trials make one artifact"):
        next(run_trials("distill", trials, store, Observer("text"), 2))
    assert not list(tmp_path.iterdir())


def test_a_trial_whose_data_cannot_be_made_does_not_stop_the_others(tmp_path, monkeypatch):
    def execute(config, store, stages, observer):
        if config.distill.seed == 1:
            raise StageFailed("no data")

    monkeypatch.setattr(sweep, "ray_cluster", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setattr(sweep, "_run", lambda stage, trial, store, observer: trial.name)
    trials = make_trials(None, "shapes", ["distill.seed=0,1,2"])
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
    require_judged_alike(make_trials(None, "shapes", ["distill.seed=0,1"]))
    with pytest.raises(ConfigError, match=f"{section} differs"):
        require_judged_alike(make_trials(None, "shapes", [setting]))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in this process on a store of its own, where the trials of even seeds alone
    end well; gives exit code, output, and the settings of the trials that were trained.
    """
    trained = []

    def trials_ended(stage, trials, *_):
        for trial in trials:
            trained.append(trial.name)
            made = SimpleNamespace(manifest=SimpleNamespace(key="made", metrics={}))
            yield trial, StageFailed("no luck") if trial.config.distill.seed % 2 else made

    def run(*arguments):
        where = ["--preset", "shapes", "--set", f"store={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *map(str, arguments), *where])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out + output.err, trained

    monkeypatch.setattr(sweep, "run_trials", trials_ended)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at-once", 0], "--at-once"),
        (["--score", -1], "--score"),
        (["--set", "distill.steps="], "names no value"),
        (["--set", "synthesize.guidance_scale=3,2", "--score", 500], "synthesize differs"),
        (["--score", 5], "fewer than two"),
    ],
)
def test_a_sweep_that_would_go_wrong_trains_nothing(call, arguments, words):
    code, output, trained = call("sweep", "distill", *arguments)
    assert (code, trained) == (2, [])
    assert words in output and "Traceback" not in output


def test_score_needs_a_prompt(call):
    code, output, _ = call("score", "--prompts", 0)
    assert code == 2
    assert "--prompts" in output


def test_a_sweep_with_a_failed_trial_shows_all_and_ends_with_1(call):
    code, output, trained = call("sweep", "distill", "--set", "distill.seed=0,1,2")
    assert (code, trained) == (1, ["seed=0", "seed=1", "seed=2"])
    assert "failed: no luck" in output
    assert output.count("made") == 2
    assert "error: 1 of 3 trials failed" in output


@pytest.mark.parametrize(
    ("preset", "settings", "count", "words"),
    [
        ("sd3-medium", [], 500, "teacher.family"),
        ("shapes", ["prompts.held_out_fraction=0"], 500, "nothing to judge on"),
        ("shapes", ["prompts.held_out_fraction=0.0001"], 500, "of the 500 to judge on"),
        ("shapes", [], 5, "fewer than two"),
        ("shapes", [], 0, "nothing to judge on"),
    ],
)
def test_what_cannot_be_judged_is_refused(preset, settings, count, words):
    sources = ["prompts.sources=[{kind: file, url: prompts.txt}]"] * (preset == "sd3-medium")
    with pytest.raises(ConfigError, match=words):
        held_out(load_config(None, preset, [*settings, *sources]), count)


@pytest.mark.parametrize("setting", ["distill.steps", "=3", "distill.steps=[1", "distill.steps="])
def test_a_setting_that_cannot_be_read_is_named(setting):
    with pytest.raises(ConfigError, match="--set"):
        make_trials(None, "shapes", [setting])
