"""The report's page and the model card: what they say, and that what users wrote stays text."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from schemas.config import TeacherConfig
from schemas.report import Curve, Report
from stages.report.charts import label, smoothed, thinned
from stages.report.model_card import licence_of, render_card
from stages.report.numbers import duration, moment, number, percent
from stages.report.page import measure_title, render_report
from tests.example_report import SCRIPT, example_pictures, example_report, png

ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=alert(2)> </script><script>alert(3)</script> & \"'"


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, visible text, scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.pieces: list[str] = []
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.pieces.append(data)
        elif self._inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> dict:
        """The data block that the charts are drawn from."""
        scripts = zip(self.scripts, self.attributes("script"), strict=True)
        (block,) = [text for text, attributes in scripts if attributes.get("id") == "figures"]
        return json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture(scope="module")
def report() -> Report:
    return example_report()


@pytest.fixture(scope="module")
def page(report) -> Page:
    return Page(render_report(report, example_pictures(report)))


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


def test_plotly_gets_no_markup_from_titles(report):
    title = "<b>a</b> & <a href='x'>b</a>"
    systems = [s.model_copy(update={"title": title}) for s in report.systems]
    figures = Page(render_report(example_report(systems=systems), {})).figures
    ticks = figures["score-0"]["layout"]["yaxis"]["ticktext"]
    assert set(ticks) == {"&lt;b&gt;a&lt;/b&gt; &amp; &lt;a href='x'&gt;b&lt;/a&gt;"}
    assert label("a < b") == "a &lt; b"


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


def test_the_quality_chart_draws_the_reports_numbers(report, page):
    traces = page.figures["quality"]["data"]
    drawn = {
        (x, y, up, down)
        for trace in traces
        for x, y, up, down in zip(
            trace["x"],
            trace["y"],
            trace["error_y"]["array"],
            trace["error_y"]["arrayminus"],
            strict=True,
        )
    }
    scores = [(s.seconds_per_picture, s.scores["attributes"]) for s in report.systems]
    assert drawn == {(t, i.mean, i.high - i.mean, i.mean - i.low) for t, i in scores}


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


def test_a_gap_in_a_curve_stays_a_gap():
    values = [1.0, math.nan, 3.0, math.inf]
    curve = Curve(stage="distill", name="loss", steps=[1, 2, 3, 4], values=values)
    (trace,) = Page(render_report(example_report(curves=[curve]), {})).figures["curve-0-0"]["data"]
    assert trace["y"] == [1.0, None, 3.0, None]


def test_held_out_curves_share_the_chart_of_their_measure(page):
    names = [trace.get("name") for trace in page.figures["curve-1-0"]["data"]]
    assert [name for name in names if name] == ["training", "held out"]


def test_long_curves_are_thinned_to_means_and_smoothed_without_drift():
    steps, values = thinned(range(1, 4001), [float(i % 10) for i in range(4000)])
    assert len(steps) == len(values) == 400
    assert set(values) == {4.5}
    assert steps == sorted(steps)
    assert smoothed([2.0, None, 2.0]) == [2.0, None, 2.0]
    assert smoothed([float(i) for i in range(200)])[100] == pytest.approx(100.0)


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0041, "4.1 ms"), (0.512, "512 ms"), (4.1, "4.10 s"), (41, "41.0 s"), (119.6, "2 min 00 s"),
     (3600, "1 h 00 min"), (7499, "2 h 05 min"), (100_000, "1 d 4 h")],
)  # fmt: skip
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text


def test_numbers_read_as_in_print():
    assert [number(v) for v in (0.9041, -0.5, 12.345, 12345.6)] == [
        "0.904",
        "\N{MINUS SIGN}0.500",
        "12.35",
        "12,346",
    ]
    assert number(math.nan) == number(None) == "\N{EN DASH}"
    assert [percent(v)[:-2] for v in (0.6239, 0.994, 0.5)] == ["62", "99.4", "50"]
    assert moment("2025-11-23T14:35:12+01:00") == "23 November 2025, 13:35 UTC"


def test_a_measure_is_titled_where_the_report_knows_it(report):
    assert measure_title(report, "student_4.fid") == "student, 4 steps: Fréchet distance"
    assert measure_title(report, "student_4.layout") == "student, 4 steps: colour and layout"
    assert measure_title(report, "someone.something") == "someone: something"


def card_of(report: Report, model: str | None = None, **options) -> tuple[str, ModelCard]:
    text = render_card(report, licence_of(TeacherConfig(family="sd3", model=model)), **options)
    return text, ModelCard(text)


def test_the_card_has_front_matter_that_the_hub_reads(report):
    _, card = card_of(report)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "diffusers",
        "text-to-image",
    )
    values = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
    students = [s for s in report.systems if s.kind == "student"]
    assert values == {(s.name, n): i.mean for s in students for n, i in s.scores.items()}


def test_the_card_states_data_teacher_terms_and_metrics_with_intervals(report):
    text, card = card_of(
        report, "stabilityai/stable-diffusion-3.5-medium", base_model="stabilityai/x", use_t5=True
    )
    assert (card.data.license, card.data.license_name) == ("other", "stabilityai-ai-community")
    assert card.data.base_model == "stabilityai/x"
    assert "| **student, 4 steps** | 4 | 0.904 \\[0.884, 0.924\\] |" in text
    assert "| teacher, 4 steps | 4 | 0.447 \\[0.427, 0.467\\] |" in text
    assert "kept 3,384" in text
    assert "derivative of stabilityai/stable-diffusion-3.5-medium" in text
    assert "distilled from the teacher **shapes**" in text
    assert "text_encoder_3=None" not in text
    assert "**failed**: `student_4.fid` 0.271" in text
    assert "bd6195d6d3191698" in text


def test_the_card_of_the_tuned_student_is_about_the_tuned_student(report):
    text, card = card_of(report, kind="tuned")
    assert {r.dataset_config for r in card.data.eval_results} == {"tuned_4"}
    assert "diffusion-dpo" in card.data.tags
    assert "| tuned student, 4 steps | student, 4 steps | colour and layout |" in text
    assert "scheduler_one_step" not in text


def test_an_unknown_teachers_terms_are_not_invented():
    own = licence_of(TeacherConfig(model="/models/mine"))
    assert (own.name, own.link) == ("other", None)
    assert "its licence holds for this model too" in own.terms


def test_titles_cannot_break_the_cards_tables_or_front_matter():
    content = example_report().model_dump()
    content["name"] = "a\n---\nlicense: mit"
    content["cards"]["attributes"]["title"] = "a | b\n<script>alert(1)</script> *c*"
    text, card = card_of(Report.model_validate(content))
    assert card.data.license == "apache-2.0"
    table = [line for line in text.splitlines() if line.startswith("| | steps")]
    assert "a \\| b \\<script\\>alert(1)\\</script\\> \\*c\\*" in table[0]
    assert "<script>" not in card.text
