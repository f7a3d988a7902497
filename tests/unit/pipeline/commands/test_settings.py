"""`init` never overwrites."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import cli


def test_init_never_overwrites(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", "init", str(tmp_path)])
    cli.main()
    first = Path(tmp_path / "pipeline.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert Path(tmp_path / "pipeline.yaml").read_text() == first
