"""The report's page: what it says, and that what users wrote stays text."""

from __future__ import annotations

import base64
import io
import subprocess
import sys

import pytest
from PIL import Image

from schemas.report import Report
from stages.report.page import measure_title, render_report
from tests.support.command import ROOT
from tests.support.example_report import SCRIPT, example_pictures, example_report, png
from tests.support.report_page import Page

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(2)> </script><script>alert(3)</script> & \"'"


def test_the_page_refers_to_nothing_outside_itself(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "poster"):
            where = attributes.get(name)
            assert where is None or where.startswith(("data:", "#")), (tag, where)
    assert not [a for a in page.attributes("link") if a.get("rel") == "stylesheet"]
    policy = page.attributes("meta")[2]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_only_scripts_of_the_page_itself_may_run(page):
    nonce = page.attributes("script")[0]["nonce"]
    assert f"script-src 'nonce-{nonce}'" in page.attributes("meta")[2]["content"]
    kinds = [(a.get("nonce"), a.get("type")) for a in page.attributes("script")]
    ours, data = (nonce, None), (None, "application/json")
    assert kinds == [ours, ours, data, ours, ours]
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_a_prompt_with_a_script_is_shown_as_text(page):
    assert " ".join(SCRIPT.split()) in page.text
    assert not any("alert(1)" in script for script in page.scripts)
    assert any(a.get("alt") == f"teacher, 28 steps: {SCRIPT}" for a in page.attributes("img"))
    assert any(a.get("data-prompt") == SCRIPT for a in page.attributes("button"))


def test_the_page_shows_the_range_of_a_teacher_s_guidance():
    content = example_report().model_dump()
    content["systems"][0]["guidance_scale"] = [3.0, 7.5]
    report = Report.model_validate(content)
    assert "3.0 to 7.5" in Page(render_report(report, example_pictures(report))).text


def test_every_text_of_a_report_is_shown_as_text():
    """Each text field of the report is made hostile; no tag comes of any."""
    plain = example_report()
    content = plain.model_dump()
    content |= {"name": HOSTILE, "headline": HOSTILE, "teacher": HOSTILE}
    content["feature_space"]["title"] = content["feature_space"]["explanation"] = HOSTILE
    for card in content["cards"].values():
        card |= {"title": HOSTILE, "explanation": HOSTILE, "licence": HOSTILE, "weights": HOSTILE}
    for system in content["systems"]:
        system["title"] = HOSTILE
        system["by_bucket"][HOSTILE] = system["by_bucket"].pop("64x64")
        system["by_category"][HOSTILE] = system["by_category"].pop("two objects")
    for gate in content["gates"]:
        gate |= {"name": HOSTILE, "demand": HOSTILE}
    for curve in content["curves"]:
        curve |= {"name": curve["name"] + HOSTILE, "stage": HOSTILE}
    for step in content["lineage"]:
        step |= {"stage": HOSTILE, "counts": {HOSTILE: 1}}
    for row in content["wall"]:
        row |= {"prompt": HOSTILE, "bucket": HOSTILE, "category": HOSTILE}
    content["data"] = {HOSTILE: {HOSTILE: 1}}
    content["tuning"] = {HOSTILE: [{HOSTILE: 1.0}]}
    content["environment"] |= {"platform": HOSTILE, "git_commit": HOSTILE, "python": HOSTILE}
    hostile = Report.model_validate(content)
    expected = Page(render_report(plain, example_pictures(plain)))
    found = Page(render_report(hostile, example_pictures(plain)))
    assert len(found.scripts) == len(expected.scripts)
    assert len(found.attributes("img")) == len(expected.attributes("img"))
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert not any("alert(3)</script>" in script for script in found.scripts)


def test_the_verdict_and_every_gate_stand_in_words(page):
    assert "Failed: 1 of 3 gates missed" in page.text
    assert "student, 4 steps: Fréchet distance failed <= 0.25 0.271 0.021" in page.text
    assert "student, 1 step: all attributes right passed >= 0.82 0.838" in page.text


def test_a_report_that_passes_says_so(report):
    gates = [g.model_copy(update={"passed": True, "misses_by": 0.0}) for g in report.gates]
    passing = Page(render_report(example_report(gates=gates, passed=True), {})).text
    assert "Passed: all 3 gates hold" in passing
    assert "Failed" not in passing
    without = Page(render_report(example_report(gates=[], passed=True), {})).text
    assert "No gates were set" in without
    assert "Passed" not in without


def test_the_wall_shows_each_picture_as_it_is(report, page):
    pictures = example_pictures(report)
    shown = [
        base64.b64decode(a["src"].removeprefix("data:image/png;base64,"))
        for a in page.attributes("img")
    ]
    columns = ["teacher", "student_1", "student_2", "student_4", "tuned_4"]
    columns += ["teacher_1", "teacher_2", "teacher_4"]
    assert shown == [pictures[row.key, name] for row in report.wall for name in columns]


def test_a_missing_picture_is_said_to_be_missing(report):
    pictures = example_pictures(report)
    del pictures["sample2", "student_4"]
    found = Page(render_report(report, pictures))
    assert found.text.count("no picture") == 1
    assert len(found.attributes("img")) == len(pictures)


def test_large_pictures_are_stored_smaller():
    row = {"key": "a", "prompt": "p", "bucket": "1024x640", "category": "c"}
    report = example_report(wall=[row])
    found = Page(render_report(report, {("a", "teacher"): png("1024x640")}))
    (picture,) = found.attributes("img")
    kept = Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1])))
    assert (kept.format, kept.size) == ("WEBP", (640, 400))
    assert (picture["width"], picture["height"]) == ("1024", "640")
    assert "reduced size" in found.text


def test_every_system_score_bucket_key_and_count_is_there(report, page):
    expected = [s.title for s in report.systems]
    expected += [card.title for card in report.cards.values()]
    expected += [*report.systems[0].by_bucket, *report.systems[0].by_category]
    expected += [step.key for step in report.lineage]
    expected += [text for table in report.data.values() for text in table]
    expected += [*report.environment.packages.values(), report.environment.git_commit]
    assert [text for text in expected if text not in page.text] == []
    assert "0.904 [0.884, 0.924]" in page.text
    assert "4 1.152 0.271 0.24" in page.text  # the distance at 4 steps, and the student's share


def test_every_chart_has_its_numbers_as_a_table(page):
    drawn = {a["data-chart"] for a in page.attributes("div") if "data-chart" in a}
    assert drawn == set(page.figures)
    assert len(page.attributes("details")) == len(drawn)
    assert {"quality", "score-0", "score-1", "wins-0", "wins-1", "diversity"} < drawn


def test_a_verdict_on_wins_needs_the_whole_interval(page):
    assert "student, 4 steps over teacher, 4 steps 73 % 71 % 75 % wins" in page.text
    assert "tuned student, 4 steps over student, 4 steps 51 % 49 % 52 % undecided" in page.text
    assert "student, 4 steps over teacher, 28 steps 46 % 43 % 49 % loses" in page.text


def test_lineage_runs_from_the_report_back_to_the_prompts(report):
    shuffled = example_report(lineage=report.lineage[::-1])
    for lineage in (report, shuffled):
        found = Page(render_report(lineage, {}))
        keys = [a["id"].removeprefix("artifact-") for a in found.attributes("li") if "id" in a]
        by_key = {step.key: step for step in report.lineage}
        for place, key in enumerate(keys):
            assert not set(by_key[key].inputs) & set(keys[:place]), key
        assert (by_key[keys[0]].stage, by_key[keys[-1]].stage) == ("eval", "prompts")


def test_what_was_expected_stands_beside_what_it_took(report, page):
    assert (
        "distill 2 x cpu-amd-epyc 0.425 0.340 12 min 45 s 10 min 12 s 0.80 distill/0a1b2c3d4e5f6071"
        in page.text
    )
    assert "dpo 2 x cpu-amd-epyc 0.200 0.160 6 min 00 s 4 min 48 s 0.80 the FLOP model" in page.text
    lineage = [step.model_copy(update={"expected": None}) for step in report.lineage]
    before = Page(render_report(example_report(lineage=lineage), {}))
    assert "Estimate against fact" in page.text and "Estimate against fact" not in before.text


def test_the_page_needs_no_tuning_no_gates_and_no_pictures():
    report = example_report()
    bare = example_report(
        systems=[s for s in report.systems if s.kind == "student"],
        win_rates=[],
        gates=[],
        curves=[],
        data={},
        tuning={},
        wall=[],
        lineage=[],
    )
    found = Page(render_report(bare, {}))
    titles = [a["href"] for a in found.attributes("a") if a["href"].startswith("#")]
    assert "#tuning" not in titles
    assert "#quality" in titles
    ids = {a["id"] for _, a in found.tags if "id" in a}
    assert {title.removeprefix("#") for title in titles} <= ids
    nothing = Page(render_report(example_report(systems=[], win_rates=[], cards={}, gates=[]), {}))
    assert nothing.figures.keys() == {n for n in nothing.figures if n.startswith("curve-")}


def test_the_same_report_gives_the_same_page(report):
    pictures = example_pictures(report)
    assert render_report(report, pictures) == render_report(report, pictures)


def test_the_page_carries_the_report_itself(report, page):
    (link,) = [a for a in page.attributes("a") if "download" in a]
    content = base64.b64decode(link["href"].split(",")[1])
    assert Report.model_validate_json(content) == report


def test_the_page_is_made_without_torch_and_ray():
    code = (
        "import sys, stages.report.page, stages.report.model_card; "
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr


def test_a_distance_stands_with_its_interval_below_the_floor(page):
    floor = page.text.index("floor: teacher, 28 steps, other seeds 0.094 [0.083, 0.105]")
    student = page.text.index("student, 4 steps 0.271 [0.249, 0.293]")
    assert floor < student
    assert "teacher, 28 steps 0.000" not in page.text[floor:student]


def test_a_distance_without_a_figure_says_why():
    report = example_report(floor={}, too_few={"fid": "9 pictures, needs at least 129"})
    bare = {"distances": {}, "intervals": {}}
    systems = [system.model_copy(update=bare) for system in report.systems]
    found = Page(render_report(report.model_copy(update={"systems": systems}), {}))
    assert "No Fréchet distance: 9 pictures, needs at least 129." in found.text
    assert "distance" not in found.figures and "All distances" not in found.text


def test_a_report_from_before_there_were_intervals_is_shown(report):
    content = report.model_dump()
    for name in ("more_spaces", "floor", "too_few"):
        del content[name]
    for system in content["systems"]:
        del system["intervals"]
    old = Page(render_report(Report.model_validate(content), {}))
    assert "teacher, 28 steps 0.000" in old.text and "student, 4 steps 0.271" in old.text


def test_a_measure_is_titled_where_the_report_knows_it(report):
    assert measure_title(report, "student_4.fid") == "student, 4 steps: Fréchet distance"
    assert measure_title(report, "student_4.layout") == "student, 4 steps: colour and layout"
    assert measure_title(report, "someone.something") == "someone: something"
    title = measure_title(report, "student_4.kid_inception_features")
    assert title == "student, 4 steps: KID, inception features"
