"""What a whole run ends with: report, cards, gates, and pictures by the student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from pipeline.base.store import ArtifactStore
from stages.compare.study import plan_study
from tests.support.browser import WIDTHS, show
from tests.support.command import artifact, call_here

pytestmark = pytest.mark.slow
GATES = "eval.gates={student_4.attributes: '>= 1.5', teacher.diversity: '> 0'}"


def arguments(store: Path, *settings: str) -> list[str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return ["run", "--preset", "shapes-smoke", "--set", f"store={store}", *flags]


def test_the_report_holds_every_system_and_the_student_its_card(smoke_store):
    folder = artifact(smoke_store, "eval")
    report = json.loads((folder / "report.json").read_text())
    assert [system["name"] for system in report["systems"]] == [
        *("teacher", "teacher_1", "student_4", "student_1", "tuned_4"),
    ]
    page = (folder / "report.html").read_text()
    assert all(row["prompt"] in page for row in report["wall"])
    for name in ("model", "student"):
        card = (folder / name / "README.md").read_text()
        assert card.startswith("---\n") and "license" in card
        assert ("tuned by Diffusion-DPO" in card) == (name == "model")
        assert (folder / name / "transformer").is_dir()
    trained = [step["stage"] for step in report["lineage"]]
    assert trained[0] == "prompts" and set(trained) == {
        *("prompts", "synthesize", "encode", "distill", "pairs", "dpo"),
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_real_run_is_whole_at_every_width(smoke_store, browser, width):
    show(browser, (artifact(smoke_store, "eval") / "report.html").as_uri(), width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.find_element(By.CSS_SELECTOR, ".verdict").is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, "#wall img")


def test_people_may_compare_the_systems_of_a_real_run(smoke_store):
    """Bug: take the model's name for the teacher's among the systems."""
    store = ArtifactStore(str(smoke_store))
    evaluation = store.find("eval", artifact(smoke_store, "eval").name)
    study = plan_study(evaluation, (), 4, ("quality",))
    assert set(study.titles) == {"teacher", "student_4", "tuned_4"}


def test_a_missed_gate_ends_with_six_and_says_by_how_much(smoke_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(smoke_store, store)
    for _ in range(2):  # also when there is nothing left to do
        result = call_here(*arguments(store, GATES))
        assert result.returncode == 6, result.stderr
        assert "student_4.attributes is" in result.stderr and "away from >= 1.5" in result.stderr
        assert "teacher.diversity" not in result.stderr
    assert "Traceback" not in result.stderr
    result = call_here(*arguments(store, GATES), "--until", "distill")
    assert result.returncode == 0, result.stderr


def test_sample_draws_a_file_of_prompts_with_the_adapters_at_a_scale(smoke_store, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\na blue circle left of a ring\n")
    where = ["--preset", "shapes-smoke", "--set", f"store={smoke_store}", "--file", prompts]

    def draw(name: str, *options: str) -> dict[str, bytes]:
        out = tmp_path / name
        result = call_here("sample", *where, "--out", out, "--bucket", "96x40", *options)
        assert result.returncode == 0, result.stderr
        pictures = sorted(p for p in out.glob("*.png") if p.name != "contact-sheet.png")
        assert len(pictures) == 2 and (out / "contact-sheet.png").exists()
        return {p.name.split("-lora")[0].removesuffix(".png"): p.read_bytes() for p in pictures}

    plain, off, on = (
        draw("plain"),
        draw("off", "--lora-scale", "0"),
        draw("on", "--lora-scale", "8"),
    )
    assert plain == off and plain != on
    assert draw("one", "--steps", "1") != plain
    assert call_here("sample", *where[:4]).returncode == 2
