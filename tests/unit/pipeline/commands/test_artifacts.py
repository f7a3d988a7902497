"""`artifacts gc` deletes nothing by mistake."""

from __future__ import annotations

import sys

import pytest

from pipeline import cli


def test_gc_deletes_nothing_for_a_configuration_that_nobody_named(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "store" / "artifacts" / "distill" / "0123456789abcdef" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    arguments = ["artifacts", "gc", "--delete", "--set", f"store={tmp_path}/store"]
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "--config FILE or --preset NAME" in capsys.readouterr().err
    assert kept.exists()
