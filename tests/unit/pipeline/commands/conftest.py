"""A sweep in this process, whose trials are trained by nobody."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pipeline import cli, sweep
from pipeline.commands import stopping
from schemas.errors import StageFailed


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
    monkeypatch.setattr(stopping.signal, "signal", lambda *_: None)
    return run
