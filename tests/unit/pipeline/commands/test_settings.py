"""`init` never overwrites; neither `config show` nor a refusal shows a secret."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import cli
from tests.support.command import call_here


def test_init_never_overwrites(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ladd-pipeline", "init", str(tmp_path)])
    cli.main()
    first = Path(tmp_path / "pipeline.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert Path(tmp_path / "pipeline.yaml").read_text() == first


def test_what_is_shown_of_a_configuration_has_no_signatures(tmp_path):
    """Bug: print what the file has; terminals and CI logs are kept."""
    signed = "prompts.sources=[{kind: file, url: 'https://a.b/p.txt?X-Amz-Signature=c0ffee'}]"
    shown = call_here("config", "show", "--preset", "shapes", "--set", signed)
    assert shown.returncode == 0 and "https://a.b/p.txt" in shown.stdout
    assert "c0ffee" not in shown.stdout
    whole = call_here("config", "show", "--signed", "--preset", "shapes", "--set", signed)
    assert "c0ffee" in whole.stdout


@pytest.mark.parametrize(
    "setting",
    [
        "kubernetes.env={HF_TOKEN: hf_c0ffee}",
        "kubernetes.env=[HF_TOKEN=hf_c0ffee]",
        "trackers=[{kind: mlflow, uri: 'https://me:c0ffee@a.b'}]",
        "prompts.sources='https://a.b/p.txt?sig=c0ffee'",
    ],
)
def test_refusals_show_no_secrets(setting):
    """Bug: show the value of every field that is refused."""
    refused = call_here("config", "show", "--preset", "shapes", "--set", setting)
    assert refused.returncode == 2, refused.stdout
    assert "error: " in refused.stderr and "c0ffee" not in refused.stderr
