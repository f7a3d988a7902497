"""The table of benchmarks/ablations.py when trainings fail."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from schemas.errors import ConfigError, StageFailed
from stages.judging.shapes_table import Judged, at_steps
from tests.support.command import ROOT


@pytest.fixture
def ablations(monkeypatch, tmp_path) -> ModuleType:
    """The script, asked for three seeds; judged without a look at any picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module("ablations")
    asked = ("--store", str(tmp_path), "--seeds", "3", "--prompts", "20")
    monkeypatch.setattr(sys, "argv", ["ablations.py", *asked])
    monkeypatch.setattr(module, "write_real_scenes", lambda *_: None)
    monkeypatch.setattr(module, "score_table", judged)
    return module


def judged(config, students, count, report) -> list[Judged]:
    """Each seed of the shipped student is right in 90 %, all others in none."""
    return [
        Judged(
            pictures=at_steps(title, n),
            steps=n,
            attributes=0.9 * title.startswith("as shipped"),
            frechet=0.1,
            diversity=1.0,
            attributes_by_bucket={"64x64": 0.5, "80x48": 0.5},
            frechet_by_bucket={"64x64": 0.1, "80x48": 0.1},
        )
        for title in students
        for n in (4, 2, 1)
    ]


def failing(failed):
    """`run_trials` where the trials fail that set what `failed` names."""

    def run_trials(stage, trials, *_):
        made = SimpleNamespace(name=lambda part: part)
        for trial in trials:
            yield trial, StageFailed("no luck") if failed(trial.settings) else made

    return run_trials


def test_seeds_whose_training_failed_lend_their_place_to_nobody(
    ablations, monkeypatch, capsys, tmp_path
):
    plot = tmp_path / "plot.svg"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--plot", str(plot)])
    monkeypatch.setattr(ablations, "run_trials", failing(lambda own: own == ("distill.seed=1",)))
    with pytest.raises(SystemExit, match="1 of 12 students failed"):
        ablations.main()
    printed = capsys.readouterr().out
    assert "| as shipped, seed 2 | 90.0 / 90.0 / 90.0 |" in printed
    assert "mean and deviation over 2 seeds" in printed
    assert "- all attributes, %: 90.0 ± 0.0 / 90.0 ± 0.0 / 90.0 ± 0.0" in printed
    assert plot.exists()


def test_the_table_is_printed_also_without_any_seed(ablations, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--plot", str(tmp_path / "plot.svg")])
    monkeypatch.setattr(
        ablations, "run_trials", failing(lambda own: not own or "distill.seed" in own[0])
    )
    with pytest.raises(SystemExit, match="3 of 12 students failed"):
        ablations.main()
    printed = capsys.readouterr().out
    assert "| 1D heads | 0.0 / 0.0 / 0.0 |" in printed
    assert "nan" not in printed and "mean of" not in printed


def test_prompts_that_cannot_be_judged_on_are_refused_before_training(ablations, monkeypatch):
    trained = []
    monkeypatch.setattr(ablations, "run_trials", lambda *_: trained.append(1))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--prompts", "5"])
    with pytest.raises(ConfigError, match="fewer than two"):
        ablations.main()
    assert not trained
