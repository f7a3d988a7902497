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

from schemas.report import Curve, Interval, Report, ScoreCard, SystemResult, WinRate
from stages.report.numbers import NOTHING, digits_for, duration, number, percent

KINDS = ("teacher", "student", "tuned")
_MARKERS = {"teacher": "circle", "student": "square", "tuned": "diamond"}
_POINTS_OF_A_CURVE, _ROWS_OF_A_CURVE, _ROW_HEIGHT = 400, 9, 30
HELD_OUT = "held_out_"


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
        [s.title, *_numbers(s.scores[score], digits), duration(s.seconds_per_picture)]
        for s in in_order(report.systems)
    ]
    better = "higher" if card.higher_is_better else "lower"
    return _chart(
        "quality",
        f"{_capital(card.title)} against time",
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
        "error_y": _whiskers(intervals, kind),
        "mode": "lines+markers+text" if len(points) > 1 else "markers",
        "text": [str(system.steps) for system in points],
        "textposition": "bottom right",
        "textfont": {"color": colour(kind)},
        "marker": {"symbol": _MARKERS[kind], "size": 10, "color": colour(kind)},
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


def score_bars(report: Report, score: str) -> Chart:
    """One score of every system, with intervals: bars if the minimum is 0, otherwise points."""
    card = report.cards[score]
    systems = in_order(report.systems)
    note = f"{card.explanation} {_better(card)}"
    return _rows_of_intervals(
        f"score-{list(report.cards).index(score)}",
        _capital(card.title),
        note,
        [(s.title, s.kind, s.scores[score]) for s in systems],
        bars=card.low == 0,
    )


def diversity_bars(report: Report) -> Chart:
    """How much pictures of one prompt differ, also as a share of the teacher's at most steps."""
    systems = in_order(report.systems)
    whole = next((s.diversity for s in systems if s.kind == "teacher"), 0.0)
    shares = [percent(s.diversity / whole) if whole else NOTHING for s in systems]
    figure = go.Figure(layout=_rows_layout([s.title for s in systems]))
    digits = digits_for(s.diversity for s in systems)
    figure.add_bar(
        x=[_finite(s.diversity) for s in systems],
        y=list(range(len(systems))),
        orientation="h",
        marker={"color": [colour(s.kind) for s in systems]},
        hoverinfo="skip",
    )
    _values_at_the_right(figure, shares)
    figure.update_xaxes(rangemode="tozero", nticks=5)
    return _chart(
        "diversity",
        "Within one prompt",
        "Mean feature distance between pictures of one prompt; the percentage on the right is its "
        "share of the teacher's. A collapsed student generates the same picture every time, so its "
        "bar is short.",
        figure,
        ["", "diversity", "share of the teacher's"],
        [
            [s.title, number(s.diversity, digits), share]
            for s, share in zip(systems, shares, strict=True)
        ],
    )


def win_charts(report: Report) -> list[Chart]:
    """One chart per score: how often one system beats another on the same prompt."""
    titles = {s.name: s.title for s in report.systems}
    charts = []
    for index, score in enumerate(dict.fromkeys(w.score for w in report.win_rates)):
        wins = [w for w in report.win_rates if w.score == score]
        names = [(titles[w.system], titles[w.against]) for w in wins]
        figure = go.Figure(layout=_rows_layout([f"{a}\nover {b}" for a, b in names], row_height=52))
        figure.add_vline(x=50, line={"color": "var(--muted)", "width": 1.5, "dash": "4px,3px"})
        for kind in _VERDICT_MARKERS:
            indices = [i for i, w in enumerate(wins) if _verdict(w.rate) == kind]
            rates = [_scaled(wins[i].rate, 100) for i in indices]
            figure.add_scatter(
                x=[r.mean for r in rates],
                y=indices,
                error_x=_whiskers(rates, _VERDICT_COLOURS[kind]),
                mode="markers",
                marker={
                    "symbol": _VERDICT_MARKERS[kind],
                    "size": 9,
                    "color": colour(_VERDICT_COLOURS[kind]),
                    "line": {"width": 2, "color": colour(_VERDICT_COLOURS[kind])},
                },
                hoverinfo="skip",
            )
        _values_at_the_right(figure, [percent(w.rate.mean) for w in wins])
        figure.update_xaxes(
            range=[0, 100], tickvals=[0, 25, 50, 75, 100], ticktext=["0", "25", "50 %", "75", "100"]
        )
        card = report.cards[score]
        charts.append(
            _chart(
                f"wins-{index}",
                f"By {card.title}",
                "",
                figure,
                ["", "wins", "from", "to", "verdict"],
                [
                    [f"{a} over {b}", *_percents(w), _verdict(w.rate)]
                    for (a, b), w in zip(names, wins, strict=True)
                ],
            )
        )
    return charts


def curve_charts(curves: Sequence[Curve]) -> dict[str, list[Chart]]:
    """Charts by stage, one per measure; held-out values share the chart of their measure."""
    stages: dict[str, dict[str, list[Curve]]] = {}
    for curve in curves:
        measure = curve.name.removeprefix(HELD_OUT)
        stages.setdefault(curve.stage, {}).setdefault(measure, []).append(curve)
    return {
        stage: [
            _curve_chart(f"curve-{index}-{place}", measure.replace("_", " "), parts)
            for place, (measure, parts) in enumerate(measures.items())
        ]
        for index, (stage, measures) in enumerate(stages.items())
    }


def _curve_chart(name: str, title: str, curves: Sequence[Curve]) -> Chart:
    figure = go.Figure(layout={"height": 220, "template": {}})
    for curve in curves:
        held_out = curve.name.startswith(HELD_OUT)
        kind = "tuned" if held_out else "student"
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
            mode="lines+markers" if held_out else "lines",
            marker={"symbol": "diamond", "size": 6, "color": colour(kind)},
            line={"color": colour(kind), "width": 2},
            name="held out" if held_out else "training",
            hovertemplate="update %{x:,}: %{y:.4~g}<extra></extra>",
        )
    both = len({c.name.startswith(HELD_OUT) for c in curves}) > 1
    figure.update_layout(
        showlegend=both,
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
        part = "held out" if curve.name.startswith(HELD_OUT) else "training"
        rows += [[part, f"{curve.steps[i]:,}", number(curve.values[i], digits)] for i in indices]
    return _chart(name, _capital(title), "", figure, ["", "update", "value"], rows)


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float | None]]:
    """Reduce a curve to at most 400 points: means of equal parts, at the middle of each; None where
    no value is finite.
    """
    if len(steps) <= _POINTS_OF_A_CURVE:
        return list(steps), [_finite(v) for v in values]
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


_VERDICT_MARKERS = {"wins": "diamond", "loses": "x-thin", "undecided": "circle-open"}
_VERDICT_COLOURS = {"wins": "student", "loses": "tuned", "undecided": "teacher"}


def _verdict(rate: Interval) -> str:
    """Verdict of the interval against an even match (0.5)."""
    return "wins" if rate.low > 0.5 else "loses" if rate.high < 0.5 else "undecided"


def _rows_of_intervals(
    name: str, title: str, note: str, rows: Sequence[tuple[str, str, Interval]], *, bars: bool
) -> Chart:
    """One row per system: bar or point, whiskers, and the value on the right."""
    digits = digits_for(interval.mean for _, _, interval in rows)
    figure = go.Figure(layout=_rows_layout([text for text, _, _ in rows]))
    for kind in KINDS:
        indices = [i for i, row in enumerate(rows) if row[1] == kind]
        intervals = [rows[i][2] for i in indices]
        common: dict[str, Any] = {
            "x": [_finite(i.mean) for i in intervals],
            "y": indices,
            "hoverinfo": "skip",
        }
        if bars:
            figure.add_bar(
                **common,
                orientation="h",
                marker={"color": colour(kind)},
                error_x=_whiskers(intervals, "ink"),
            )
        else:
            figure.add_scatter(
                **common,
                mode="markers",
                marker={"color": colour(kind), "size": 8, "symbol": _MARKERS[kind]},
                error_x=_whiskers(intervals, kind),
            )
    figure.update_xaxes(nticks=5, **({"rangemode": "tozero"} if bars else {}))
    _values_at_the_right(figure, [number(i.mean, digits) for _, _, i in rows])
    return _chart(
        name,
        title,
        note,
        figure,
        ["", "mean", "from", "to"],
        [[text, *_numbers(interval, digits)] for text, _, interval in rows],
    )


def _rows_layout(titles: Sequence[str], row_height: int = _ROW_HEIGHT) -> dict[str, Any]:
    """Layout with numbered rows, so that two systems may share a title; the first is on top."""
    return {
        "template": {},
        "height": row_height * len(titles) + 44,
        "bargap": 0.42,
        "barmode": "overlay",
        "margin": {"r": 64},
        "yaxis": {
            "tickvals": list(range(len(titles))),
            "ticktext": [label(title).replace("\n", "<br>") for title in titles],
            "range": [len(titles) - 0.5, -0.5],
            "showgrid": False,
        },
    }


def _values_at_the_right(figure: go.Figure, values: Sequence[str]) -> None:
    for row, value in enumerate(values):
        figure.add_annotation(
            x=1,
            xref="paper",
            y=row,
            text=value,
            showarrow=False,
            xanchor="right",
            xshift=62,
        )


def _whiskers(intervals: Sequence[Interval], kind: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [_finite(i.high - i.mean) for i in intervals],
        "arrayminus": [_finite(i.mean - i.low) for i in intervals],
        "color": colour(kind),
        "thickness": 1.5,
        "width": 4,
    }


def _chart(
    name: str, title: str, note: str, figure: go.Figure, columns: list[str], rows: list[list[str]]
) -> Chart:
    figure.update_layout(showlegend=bool(figure.layout.showlegend), dragmode=False)
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True)
    return Chart(name, title, note, figure.to_plotly_json(), columns, rows)


def _numbers(interval: Interval, digits: int) -> list[str]:
    return [number(v, digits) for v in (interval.mean, interval.low, interval.high)]


def _percents(win: WinRate) -> list[str]:
    return [percent(v) for v in (win.rate.mean, win.rate.low, win.rate.high)]


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        mean=factor * interval.mean, low=factor * interval.low, high=factor * interval.high
    )


def _better(card: ScoreCard) -> str:
    return "Higher is better." if card.higher_is_better else "Lower is better."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _finite(value: float) -> float | None:
    """None unless the value is finite: JSON has no NaN, but null shows as a gap."""
    return float(value) if math.isfinite(value) else None
