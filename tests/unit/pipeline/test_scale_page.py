"""docs/scale.md says what `plan` says, which agrees with a calculation by hand."""

from __future__ import annotations

import re

import pytest

from pipeline.base.store import ArtifactStore
from pipeline.commands.cost_table import print_costs
from pipeline.config import load_config
from pipeline.devices import _CPU_SHARES, _GPU_SHARES
from pipeline.estimates import outlook
from pipeline.planning import Selection, make_plan
from tests.support.command import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text()


@pytest.fixture(scope="module")
def million():
    """The configuration of the command on the page, and what is estimated of it."""
    settings = re.findall(r"--set (\S+)", PAGE)
    config = load_config(preset="sd35-medium", settings=settings, environment={})
    return config, outlook(config, make_plan(config, ArtifactStore("memory://"), Selection()), {})


def test_the_page_has_what_plan_prints(million, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    config, ahead = million
    print_costs(ahead, config.costs)
    printed = capsys.readouterr().out.splitlines() + [f"note: {text}" for text in ahead.remarks]
    for line in filter(None, (line.rstrip() for line in printed)):
        assert line in PAGE, line


def test_plan_agrees_with_a_calculation_by_hand(million):
    """Within a tenth. The numbers are those of the page, from the published geometry."""
    _, ahead = million
    image, text, width = 64 * 64, 77 + 256, 1536
    layers = 2 * 12 * width**2 * 24 * (image + text) + 2 * 4 * width**2 * 13 * image
    attention = 4 * 24 * (image + text) ** 2 * width + 4 * 13 * image**2 * width
    forward = layers + attention
    t5 = 2 * 24 * (4 * 4096**2 + 3 * 4096 * 10240) * 256
    sampling, compiled, decoding = 0.25 * 989e12, 0.26 * 989e12, 0.07 * 989e12
    picture = (61 * forward + t5) / sampling + 10.47e12 / decoding + 61 * 24 * 3e-4 / 8
    hours = 970_000 * picture / 3600
    assert hours == pytest.approx(808, rel=0.01)
    assert ahead.stages["synthesize"].device_hours == pytest.approx(hours, rel=0.1)
    heads = 2 * 9 * 256 * (width + 256) * 24 * image
    sample = (6.25 * forward + 6.75 * heads) / compiled + t5 / sampling
    hours = (192_000 + 6_400 / 2) * sample / 3600
    assert hours == pytest.approx(16.5, rel=0.01)
    assert ahead.stages["distill"].device_hours == pytest.approx(hours, rel=0.1)
    stored = sum(ahead.stages[name].store_bytes for name in ("synthesize", "encode"))
    assert stored == pytest.approx(970_000 * (0.65 * 1024**2 + 2 * 2 * 16 * 128**2), rel=0.1)


def test_the_page_has_the_shares_of_the_peak():
    for name, shares in (("GPU", _GPU_SHARES), ("core", _CPU_SHARES)):
        row = " | ".join(f"{share:.2f}" for share in shares.values())
        assert f"| {name} | {row} |" in PAGE
