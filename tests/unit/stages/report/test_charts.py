"""Charts draw the numbers of the report."""

from __future__ import annotations

import math

import pytest

from schemas.report import Curve
from stages.report.charts import label, smoothed, thinned
from stages.report.page import render_report
from tests.support.example_report import example_report
from tests.support.report_page import Page


def test_plotly_gets_no_markup_from_titles(report):
    title = "<b>a</b> & <a href='x'>b</a>"
    systems = [s.model_copy(update={"title": title}) for s in report.systems]
    figures = Page(render_report(example_report(systems=systems), {})).figures
    ticks = figures["score-0"]["layout"]["yaxis"]["ticktext"]
    assert set(ticks) == {"&lt;b&gt;a&lt;/b&gt; &amp; &lt;a href='x'&gt;b&lt;/a&gt;"}
    assert label("a < b") == "a &lt; b"


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


def test_a_gap_in_a_curve_stays_a_gap():
    values = [1.0, math.nan, 3.0, math.inf]
    curve = Curve(stage="distill", name="loss", steps=[1, 2, 3, 4], values=values)
    (trace,) = Page(render_report(example_report(curves=[curve]), {})).figures["curve-0-0"]["data"]
    assert trace["y"] == [1.0, None, 3.0, None]


def test_held_out_curves_share_the_chart_of_their_measure(page):
    names = [trace.get("name") for trace in page.figures["curve-1-0"]["data"]]
    assert [name for name in names if name] == ["training", "held out"]


def test_the_teachers_figure_is_drawn_beside_the_students():
    curves = [
        Curve(stage="distill", name=f"{whose}_attributes", steps=[100, 200], values=values)
        for whose, values in (("held_out", [0.5, 0.75]), ("teacher", [0.875, 0.875]))
    ]
    page = Page(render_report(example_report(curves=curves), {}))
    shown = page.figures["curve-0-0"]["data"]
    assert [(line["name"], line["y"]) for line in shown] == [
        ("held out", [0.5, 0.75]),
        ("teacher", [0.875, 0.875]),
    ]
    assert shown[1]["line"]["color"] == "var(--teacher)"


def test_long_curves_are_thinned_to_means_and_smoothed_without_drift():
    steps, values = thinned(range(1, 4001), [float(i % 10) for i in range(4000)])
    assert len(steps) == len(values) == 400
    assert set(values) == {4.5}
    assert steps == sorted(steps)
    assert smoothed([2.0, None, 2.0]) == [2.0, None, 2.0]
    assert smoothed([float(i) for i in range(200)])[100] == pytest.approx(100.0)
