"""What is no command of ours is a usage error."""

from __future__ import annotations

import sys

import pytest

from pipeline import cli


def test_unknown_option_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", "run", "--untill", "x"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--untill" in capsys.readouterr().err
