"""benchmarks/health_runs.py and the page that it is for."""

from __future__ import annotations

import importlib
from types import ModuleType
from xml.etree import ElementTree

import pytest

from pipeline.config import load_config
from stages.ladd.health import WINDOW
from tests.support.command import ROOT


@pytest.fixture
def runs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("health_runs")


def trace(real: float, fake: float) -> list[dict[str, float]]:
    losses = {"student_loss": -fake, "discriminator_loss": 1.0}
    norms = {"heads_grad_norm": 0.5, "student_grad_norm": 1.0}
    logits = {"real_logit": real, "fake_logit": fake}
    return [{"step": i + 1, **logits, **losses, **norms} for i in range(2 * WINDOW)]


def test_the_page_has_each_trainings_command_and_plot(runs):
    page = (ROOT / "docs/health.md").read_text()
    joined = page.replace("\\\n", " ")
    for name, case in runs.CASES.items():
        assert case.command in " ".join(joined.split()), name
        load_config(preset="shapes", settings=list(case.all_settings))
        assert f"health/{name}.svg" in page


def test_a_plot_shows_both_runs_and_marks_the_sign(runs, tmp_path):
    bad, path = trace(1.2, -1.4), tmp_path / "heads-win.svg"
    runs.draw(runs.CASES["heads-win"], bad, trace(0.4, 0.3), path)
    ElementTree.parse(path)
    first = path.read_bytes()
    runs.draw(runs.CASES["heads-win"], bad, trace(0.4, 0.3), path)
    assert path.read_bytes() == first
    assert runs.signs_in(trace(0.4, 0.3)) == []
    (sign,) = runs.summary(runs.CASES["heads-win"], bad)["signs"]
    assert (sign["update"], sign["sign"]) == (WINDOW, "collapse")
