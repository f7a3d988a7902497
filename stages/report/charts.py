"""The report's charts as plotly figures, each with the same numbers as a table.

Colours are names of the page's CSS variables: the page resolves them for light and dark. Plotly
interprets some HTML in labels, so every text goes through `label`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from schemas.report import Curve, Interval, Report, SystemResult
from stages.report.numbers import digits_for, duration, number

KINDS = ("teacher", "student", "tuned")
MARKERS = {"teacher": "circle", "student": "square", "tuned": "diamond"}
_POINTS_OF_A_CURVE, _ROWS_OF_A_CURVE = 400, 9
_PARTS = {"held_out_": ("held out", "tuned"), "teacher_": ("teacher", "teacher")}
"""What begins a curve's name, if its measure is not that of the training itself: how the chart
names the curve, and whose colour it has.
"""


@dataclass(frozen=True)
class Chart:
    """A figure for plotly.js, and its text alternative."""

    name: str
    """Name of the element in the page."""
    title: str
    note: str
    """How to read the chart."""
    figure: dict[str, Any]
    """`data` and `layout`."""
    columns: list[str]
    rows: list[list[str]]


def label(text: str) -> str:
    """Escape text so that plotly shows it verbatim."""
    return html.escape(text, quote=False)


def colour(kind: str) -> str:
    return f"var(--{kind})"


def in_order(systems: Sequence[SystemResult]) -> list[SystemResult]:
    """Sort systems: teacher, student, tuned; the most steps first."""
    return sorted(systems, key=lambda s: (KINDS.index(s.kind), -s.steps, s.name))


def quality_and_speed(report: Report, score: str) -> Chart:
    """Time per picture against a score: one line per kind of system, one point per step count."""
    card = report.cards[score]
    digits = digits_for(s.scores[score].mean for s in report.systems)
    figure = go.Figure(layout={"height": 430, "template": {}})
    spread = np.log10([s.seconds_per_picture for s in report.systems])
    room = max(0.15, 0.17 * float(np.ptp(spread)))
    for kind in KINDS:
        points = sorted(
            (s for s in report.systems if s.kind == kind), key=lambda s: s.seconds_per_picture
        )
        if points:
            figure.add_scatter(**_line_of_points(kind, points, score, digits))
            figure.add_annotation(**_name_of_a_line(kind, points, score))
    ticks = _ticks_of_time(spread.min() - room, spread.max() + room)
    figure.update_xaxes(
        type="log",
        range=[float(spread.min() - 1.6 * room), float(spread.max() + room)],
        tickvals=ticks,
        ticktext=[duration(tick) for tick in ticks],
        title={"text": "time per picture, log scale"},
    )
    figure.update_yaxes(title={"text": label(card.title)}, nticks=7)
    rows = [
        [s.title, *numbers_of(s.scores[score], digits), duration(s.seconds_per_picture)]
        for s in in_order(report.systems)
    ]
    better = "higher" if card.higher_is_better else "lower"
    return new_chart(
        "quality",
        f"{capital(card.title)} against time",
        f"Further left is faster, {better} is better. Numbers at the points are sampling steps; "
        "whiskers are 95\N{NO-BREAK SPACE}% intervals.",
        figure,
        ["", card.title, "from", "to", "per picture"],
        rows,
    )


def _line_of_points(
    kind: str, points: Sequence[SystemResult], score: str, digits: int
) -> dict[str, Any]:
    """A trace with the number of steps written at each point."""
    intervals = [system.scores[score] for system in points]
    return {
        "x": [system.seconds_per_picture for system in points],
        "y": [interval.mean for interval in intervals],
        "error_y": whiskers(intervals, kind),
        "mode": "lines+markers+text" if len(points) > 1 else "markers",
        "text": [str(system.steps) for system in points],
        "textposition": "bottom right",
        "textfont": {"color": colour(kind)},
        "marker": {"symbol": MARKERS[kind], "size": 10, "color": colour(kind)},
        "line": {"color": colour(kind), "width": 2},
        "customdata": [
            f"<b>{label(system.title)}</b><br>{number(interval.mean, digits)} "
            f"[{number(interval.low, digits)}, {number(interval.high, digits)}]<br>"
            f"{duration(system.seconds_per_picture)} per picture"
            for system, interval in zip(points, intervals, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _name_of_a_line(kind: str, points: Sequence[SystemResult], score: str) -> dict[str, Any]:
    """Annotation where no line runs: left of the fastest student, above the slowest of others."""
    end = points[0] if kind == "student" else points[-1]
    interval = end.scores[score]
    return {
        "x": math.log10(end.seconds_per_picture),
        "y": interval.mean if kind == "student" else interval.high,
        "text": f"<b>{kind}</b>",
        "font": {"color": colour(kind)},
        "showarrow": False,
        **(
            {"xanchor": "right", "xshift": -12}
            if kind == "student"
            else {"yanchor": "bottom", "yshift": 4}
        ),
    }


def _ticks_of_time(low: float, high: float) -> list[float]:
    """Round numbers of seconds from 10**low to 10**high: fewer if the span is wide."""
    span = high - low
    steps = (1, 2, 5) if span < 1.2 else (1, 3) if span < 3 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    seconds = [round(step * 10.0**decade, 9) for decade in decades for step in steps]
    return [s for s in seconds if 10**low <= s <= 10**high]


def curve_charts(curves: Sequence[Curve]) -> dict[str, list[Chart]]:
    """Charts by stage, one per measure, which held-out values and those of the teacher share."""
    stages: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        measure = curve.name.removeprefix(_prefix(curve))
        stages.setdefault(curve.stage, {}).setdefault(measure, []).append(curve)
    return {
        stage: [
            _curve_chart(f"curve-{index}-{place}", measure.replace("_", " "), parts)
            for place, (measure, parts) in enumerate(measures.items())
        ]
        for index, (stage, measures) in enumerate(stages.items())
    }


def _prefix(curve: Curve) -> str:
    return next((prefix for prefix in _PARTS if curve.name.startswith(prefix)), "")


def _part(curve: Curve) -> tuple[str, str]:
    """The curve's name in its chart, and whose colour it has."""
    return _PARTS.get(_prefix(curve), ("training", "student"))


def _curve_chart(name: str, title: str, curves: Sequence[Curve]) -> Chart:
    figure = go.Figure(layout={"height": 220, "template": {}})
    for curve in curves:
        part, kind = _part(curve)
        steps, values = thinned(curve.steps, curve.values)
        smooth = smoothed(values)
        noisy = len(values) > 40
        if noisy:
            figure.add_scatter(
                x=steps,
                y=values,
                mode="lines",
                line={"color": colour(kind), "width": 1},
                opacity=0.28,
                showlegend=False,
                hoverinfo="skip",
            )
        figure.add_scatter(
            x=steps,
            y=smooth if noisy else values,
            mode="lines+markers" if part == "held out" else "lines",
            marker={"symbol": "diamond", "size": 6, "color": colour(kind)},
            line={"color": colour(kind), "width": 2},
            name=part,
            hovertemplate="update %{x:,}: %{y:.4~g}<extra></extra>",
        )
    figure.update_layout(
        showlegend=len(curves) > 1,
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )
    figure.update_xaxes(nticks=5, tickformat="~s")
    figure.update_yaxes(nticks=5)
    rows = []
    for curve in curves:
        digits = digits_for(curve.values)
        last = len(curve.steps) - 1
        indices = np.unique(np.linspace(0, last, _ROWS_OF_A_CURVE).round().astype(int))
        part, _ = _part(curve)
        rows += [[part, f"{curve.steps[i]:,}", number(curve.values[i], digits)] for i in indices]
    return new_chart(name, capital(title), "", figure, ["", "update", "value"], rows)


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float | None]]:
    """Reduce a curve to at most 400 points: means of equal parts, at the middle of each; None where
    no value is finite.
    """
    if len(steps) <= _POINTS_OF_A_CURVE:
        return list(steps), [finite_or_none(v) for v in values]
    parts = np.array_split(np.arange(len(steps)), _POINTS_OF_A_CURVE)
    array = np.asarray(values, dtype=float)
    means: list[float | None] = []
    for part in parts:
        finite = array[part][np.isfinite(array[part])]
        means.append(float(finite.mean()) if len(finite) else None)
    return [steps[int(part[len(part) // 2])] for part in parts], means


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """A running mean over a twentieth of the points, fewer at the ends; gaps stay gaps."""
    array = np.array([math.nan if v is None else v for v in values], dtype=float)
    half = max(1, len(array) // 40)
    result: list[float | None] = []
    for i, value in enumerate(array):
        window = array[max(0, i - half) : i + half + 1]
        finite = window[np.isfinite(window)]
        result.append(float(finite.mean()) if np.isfinite(value) else None)
    return result


def whiskers(intervals: Sequence[Interval], kind: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [finite_or_none(i.high - i.mean) for i in intervals],
        "arrayminus": [finite_or_none(i.mean - i.low) for i in intervals],
        "color": colour(kind),
        "thickness": 1.5,
        "width": 4,
    }


def new_chart(
    name: str, title: str, note: str, figure: go.Figure, columns: list[str], rows: list[list[str]]
) -> Chart:
    figure.update_layout(showlegend=bool(figure.layout.showlegend), dragmode=False)
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True)
    return Chart(name, title, note, figure.to_plotly_json(), columns, rows)


def numbers_of(interval: Interval, digits: int) -> list[str]:
    return [number(v, digits) for v in (interval.mean, interval.low, interval.high)]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def finite_or_none(value: float) -> float | None:
    """None unless the value is finite: JSON has no NaN, but null shows as a gap."""
    return float(value) if math.isfinite(value) else None
