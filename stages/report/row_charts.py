"""The report's charts with one row for each system or pair: scores, distances, diversity, wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from schemas.report import Interval, Report, ScoreCard, SystemResult, WinRate
from stages.report.charts import (
    KINDS,
    MARKERS,
    Chart,
    capital,
    colour,
    finite_or_none,
    in_order,
    label,
    new_chart,
    numbers_of,
    whiskers,
)
from stages.report.numbers import NOTHING, digits_for, number, percent

_ROW_HEIGHT = 30
_DASHED = {"color": "var(--muted)", "width": 1.5, "dash": "4px,3px"}


def score_bars(report: Report, score: str) -> Chart:
    """One score of every system, with intervals: bars if the minimum is 0, otherwise points."""
    card = report.cards[score]
    systems = in_order(report.systems)
    note = f"{card.explanation} {_better(card)}"
    return _rows_of_intervals(
        f"score-{list(report.cards).index(score)}",
        capital(card.title),
        note,
        [(s.title, s.kind, s.scores[score]) for s in systems],
        bars=card.low == 0,
    )


def distance_bars(
    systems: Sequence[SystemResult], floor: Interval | None, measure: str, title: str
) -> Chart:
    """One distance to the teacher's pictures of each system; a line marks the floor."""
    rows = [
        (s.title, s.kind, s.intervals[measure]) for s in in_order(systems) if measure in s.intervals
    ]
    note = "Lower is closer; whiskers are 95\N{NO-BREAK SPACE}% intervals."
    if floor is not None:
        note += (
            " The dashed line is the floor: what separates the teacher's pictures from its own of "
            "the same prompts and other seeds."
        )
    return _rows_of_intervals(
        "distance",
        title,
        note,
        rows,
        bars=measure != "kid",
        line=None if floor is None else floor.mean,
    )


def diversity_bars(report: Report) -> Chart:
    """How much pictures of one prompt differ, also as a share of the teacher's at most steps."""
    systems = in_order(report.systems)
    whole = next((s.diversity for s in systems if s.kind == "teacher"), 0.0)
    shares = [percent(s.diversity / whole) if whole else NOTHING for s in systems]
    figure = go.Figure(layout=_rows_layout([s.title for s in systems]))
    digits = digits_for(s.diversity for s in systems)
    intervals = [s.intervals.get("diversity", _point(s.diversity)) for s in systems]
    figure.add_bar(
        x=[finite_or_none(s.diversity) for s in systems],
        y=list(range(len(systems))),
        orientation="h",
        marker={"color": [colour(s.kind) for s in systems]},
        error_x=whiskers(intervals, "ink"),
        hoverinfo="skip",
    )
    _values_at_the_right(figure, shares)
    figure.update_xaxes(rangemode="tozero", nticks=5)
    return new_chart(
        "diversity",
        "Within one prompt",
        "Mean feature distance between pictures of one prompt; the percentage on the right is its "
        "share of the teacher's. A collapsed student generates the same picture every time, so its "
        "bar is short.",
        figure,
        ["", "diversity", "from", "to", "share of the teacher's"],
        [
            [s.title, *numbers_of(interval, digits), share]
            for s, interval, share in zip(systems, intervals, shares, strict=True)
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
        figure.add_vline(x=50, line=_DASHED)
        for kind in _VERDICT_MARKERS:
            indices = [i for i, w in enumerate(wins) if _verdict(w.rate) == kind]
            rates = [_scaled(wins[i].rate, 100) for i in indices]
            figure.add_scatter(
                x=[r.mean for r in rates],
                y=indices,
                error_x=whiskers(rates, _VERDICT_COLOURS[kind]),
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
            new_chart(
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


_VERDICT_MARKERS = {"wins": "diamond", "loses": "x-thin", "undecided": "circle-open"}
_VERDICT_COLOURS = {"wins": "student", "loses": "tuned", "undecided": "teacher"}


def _verdict(rate: Interval) -> str:
    """Verdict of the interval against an even match (0.5)."""
    return "wins" if rate.low > 0.5 else "loses" if rate.high < 0.5 else "undecided"


def _rows_of_intervals(
    name: str,
    title: str,
    note: str,
    rows: Sequence[tuple[str, str, Interval]],
    *,
    bars: bool,
    line: float | None = None,
) -> Chart:
    """One row per system: bar or point, whiskers, and the value on the right; a dashed `line`
    across them.
    """
    digits = digits_for(interval.mean for _, _, interval in rows)
    figure = go.Figure(layout=_rows_layout([text for text, _, _ in rows]))
    for kind in KINDS:
        indices = [i for i, row in enumerate(rows) if row[1] == kind]
        intervals = [rows[i][2] for i in indices]
        common: dict[str, Any] = {
            "x": [finite_or_none(i.mean) for i in intervals],
            "y": indices,
            "hoverinfo": "skip",
        }
        if bars:
            figure.add_bar(
                **common,
                orientation="h",
                marker={"color": colour(kind)},
                error_x=whiskers(intervals, "ink"),
            )
        else:
            figure.add_scatter(
                **common,
                mode="markers",
                marker={"color": colour(kind), "size": 8, "symbol": MARKERS[kind]},
                error_x=whiskers(intervals, kind),
            )
    if line is not None:
        figure.add_vline(x=line, line={**_DASHED, "color": "var(--ink)"})
    figure.update_xaxes(nticks=5, **({"rangemode": "tozero"} if bars else {}))
    _values_at_the_right(figure, [number(i.mean, digits) for _, _, i in rows])
    return new_chart(
        name,
        title,
        note,
        figure,
        ["", "mean", "from", "to"],
        [[text, *numbers_of(interval, digits)] for text, _, interval in rows],
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


def _percents(win: WinRate) -> list[str]:
    return [percent(v) for v in (win.rate.mean, win.rate.low, win.rate.high)]


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        mean=factor * interval.mean, low=factor * interval.low, high=factor * interval.high
    )


def _point(value: float) -> Interval:
    """An interval without width, of a report from before there were intervals."""
    return Interval(mean=value, low=value, high=value)


def _better(card: ScoreCard) -> str:
    return "Higher is better." if card.higher_is_better else "Lower is better."
