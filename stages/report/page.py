"""report.html: the results of an evaluation as one page that needs no network.

Knows a Report and the bytes of its pictures. Does not know torch, ray or storage.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from plotly.offline import get_plotlyjs

from schemas.report import LineageStep, Report, SystemResult, WallPicture
from stages.report.charts import Chart, curve_charts, in_order, quality_and_speed
from stages.report.measures import MEASURES, measure_words
from stages.report.numbers import (
    SPACE,
    TIMES,
    digits_for,
    duration,
    interval_text,
    number,
    percent,
)
from stages.report.row_charts import distance_bars, diversity_bars, score_bars, win_charts
from stages.report.templates import template_environment

_SMALL, _LARGEST_AS_IT_IS, _LARGEST_SHOWN = 128, 512, 640
_WALL_AREA, _WALL_SIDE = 112, 160


def render_report(report: Report, pictures: Mapping[tuple[str, str], bytes]) -> str:
    """Render the page. `pictures` are PNG bytes by sample key and system name; the page says which
    pictures are missing. The same report and pictures give the same page.
    """
    content = report.model_dump_json(indent=1)
    charts = _Charts.of(report)
    return (
        template_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            report_json=base64.b64encode(content.encode()).decode(),
            # Scripts run only with this nonce, so a script smuggled in by a prompt does not run:
            # nobody can write a prompt that contains the hash of the report that contains it.
            nonce=hashlib.sha256(content.encode()).hexdigest(),
            plotly=get_plotlyjs(),
            charts=charts,
            figures={chart.name: chart.figure for chart in charts.all()},
            key_figures=_key_figures(report),
            gates=[(measure_title(report, gate.name), gate) for gate in report.gates],
            systems=in_order(report.systems),
            equal_steps=_equal_steps(report.systems),
            distances=_distances(report.systems),
            distance_rows=_distance_rows(report),
            too_few=[(measure_words(name)[0], why) for name, why in report.too_few.items()],
            breakdowns=_breakdowns(report),
            wall=_Wall.of(report, pictures),
            lineage=_newest_first(report.lineage),
            definitions=[
                *report.cards.items(),
                *(("", space) for space in (report.feature_space, *report.more_spaces.values())),
            ],
            number=number,
            digits_for=digits_for,
        )
    )


@dataclass(frozen=True)
class _Charts:
    """Every chart of the page, by section."""

    quality: Chart | None
    scores: list[Chart]
    distance: Chart | None
    wins: list[Chart]
    diversity: Chart | None
    curves: dict[str, list[Chart]]

    @classmethod
    def of(cls, report: Report) -> _Charts:
        drawn = bool(report.systems and report.cards)
        return cls(
            quality=quality_and_speed(report, next(iter(report.cards))) if drawn else None,
            scores=[score_bars(report, score) for score in report.cards] if drawn else [],
            distance=_distance_chart(report),
            wins=win_charts(report),
            diversity=diversity_bars(report) if report.systems else None,
            curves=curve_charts(report.curves),
        )

    def all(self) -> list[Chart]:
        single = [c for c in (self.quality, self.distance, self.diversity) if c]
        of_stages = [chart for charts in self.curves.values() for chart in charts]
        return [*single, *self.scores, *self.wins, *of_stages]


def _distance_chart(report: Report) -> Chart | None:
    """The Fréchet distance of every system but the reference; KID if the pictures are too few."""
    found = {name for system in report.systems for name in system.intervals}
    name = next((n for n in ("fid", "kid") if n in found), None)
    if name is None:
        return None
    others = [system for system in report.systems if system is not reference(report.systems)]
    return distance_bars(others, report.floor.get(name), name, MEASURES[name][0])


def measure_title(report: Report, name: str) -> str:
    """Readable title of a measure, for example `student_4.fid`; unknown parts stay as they are."""
    system, _, measure = name.partition(".")
    who = next((s.title for s in report.systems if s.name == system), system)
    card = report.cards.get(measure)
    return f"{who}: {card.title if card else measure_words(measure)[0]}"


def reference(systems: Sequence[SystemResult]) -> SystemResult | None:
    """The teacher at its own steps, with which all others are compared."""
    return max((s for s in systems if s.kind == "teacher"), key=lambda s: s.steps, default=None)


def best_student(systems: Sequence[SystemResult]) -> SystemResult | None:
    """The student at its most steps."""
    return max((s for s in systems if s.kind == "student"), key=lambda s: s.steps, default=None)


def nearest_at_equal_steps(
    systems: Sequence[SystemResult], kind: str, steps: int
) -> SystemResult | None:
    """The matching system with the smallest distance (a teacher may match with and without
    guidance).
    """
    same = (s for s in systems if s.kind == kind and s.steps == steps and "fid" in s.distances)
    return min(same, key=lambda s: s.distances["fid"], default=None)


@dataclass(frozen=True)
class _KeyFigure:
    """A number at the top of the page."""

    value: str
    title: str
    detail: str


def _key_figures(report: Report) -> list[_KeyFigure]:
    """The key figures: quality, speedup, distance to the teacher, and whether tuning helped."""
    teacher, student = reference(report.systems), best_student(report.systems)
    figures = []
    if student and report.cards:
        name, card = next(iter(report.cards.items()))
        score = student.scores[name]
        against = f"; {teacher.title}: {number(teacher.scores[name].mean)}" if teacher else ""
        figures.append(
            _KeyFigure(
                number(score.mean),
                f"{card.title}, {student.title}",
                f"95{SPACE}% interval {number(score.low)} to {number(score.high)}{against}",
            )
        )
    if student and teacher and student.seconds_per_picture > 0:
        ratio = teacher.seconds_per_picture / student.seconds_per_picture
        figures.append(
            _KeyFigure(
                f"{number(ratio, 1)}{TIMES}",
                f"as fast as {teacher.title}",
                f"{duration(student.seconds_per_picture)} per picture instead of "
                f"{duration(teacher.seconds_per_picture)}",
            )
        )
    same = nearest_at_equal_steps(report.systems, "teacher", student.steps) if student else None
    if student and same and same.distances["fid"] > 0 and "fid" in student.distances:
        ratio = student.distances["fid"] / same.distances["fid"]
        floor = report.floor.get("fid")
        figures.append(
            _KeyFigure(
                f"{number(ratio, 2)}{TIMES}",
                f"the Fréchet distance of {same.title}",
                f"{number(student.distances['fid'])} against {number(same.distances['fid'])}, to "
                "the teacher's own pictures" + (f"; floor {number(floor.mean)}" if floor else ""),
            )
        )
    students = {s.name for s in report.systems if s.kind == "student"}
    tuned = {s.name: s.title for s in report.systems if s.kind == "tuned"}
    wins = [w for w in report.win_rates if w.system in tuned and w.against in students]
    if wins:
        # Tuning targets a score other than the first; on the first it must only not get worse.
        *others, win = wins
        also = "".join(f"; {percent(w.rate.mean)} by {report.cards[w.score].title}" for w in others)
        figures.append(
            _KeyFigure(
                percent(win.rate.mean),
                f"wins of {tuned[win.system]} over the student, by {report.cards[win.score].title}",
                f"95{SPACE}% interval {percent(win.rate.low)} to {percent(win.rate.high)}{also}",
            )
        )
    return figures


def _equal_steps(
    systems: Sequence[SystemResult],
) -> list[tuple[int, SystemResult, SystemResult, float]]:
    """Steps, teacher, student, and the ratio of the student's Fréchet distance to the teacher's."""
    rows = []
    for steps in sorted({s.steps for s in systems if s.kind == "student"}, reverse=True):
        teacher = nearest_at_equal_steps(systems, "teacher", steps)
        student = nearest_at_equal_steps(systems, "student", steps)
        if teacher and student and teacher.distances["fid"] > 0:
            rows.append(
                (steps, teacher, student, student.distances["fid"] / teacher.distances["fid"])
            )
    return rows


def _distances(systems: Sequence[SystemResult]) -> list[tuple[str, str, str, int]]:
    """Name, title, better direction and decimals of each distance; those in MEASURES come first."""
    present = {name for s in systems for name in s.distances}
    names = [n for n in MEASURES if n in present] + sorted(present - set(MEASURES))
    return [
        (
            name,
            *measure_words(name),
            # KID is small: papers give thousandths of it.
            digits_for(s.distances[name] for s in systems if name in s.distances)
            + name.startswith("kid"),
        )
        for name in names
    ]


def _distance_rows(report: Report) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Kind and title of each system, and each distance with its interval as text. The floor takes
    the place of the reference, whose distance to itself is nothing.
    """
    rows = [(s.kind, s.title, s.distances, s.intervals) for s in in_order(report.systems)]
    teacher = reference(report.systems)
    if report.floor and teacher is not None:
        values = {name: interval.mean for name, interval in report.floor.items()}
        floor = (teacher.kind, f"floor: {teacher.title}, other seeds", values, report.floor)
        rows = [floor, *(row for row in rows if row[1] != teacher.title)]
    return [
        (
            kind,
            title,
            [
                (number(values.get(name), digits), interval_text(intervals.get(name), digits))
                for name, _, _, digits in _distances(report.systems)
            ],
        )
        for kind, title, values, intervals in rows
    ]


@dataclass(frozen=True)
class _Breakdown:
    """One measure of every system, by bucket or by category of prompt."""

    by: str
    title: str
    direction: str
    columns: list[str]
    rows: list[tuple[SystemResult, list[tuple[str, float]]]]
    """Values as text, and how good each one is within the table, from 0 to 1."""


def _breakdowns(report: Report) -> dict[str, list[_Breakdown]]:
    """Tables by heading; empty if no measure was broken down."""
    parts = {
        "aspect bucket": {s.name: s.by_bucket for s in report.systems},
        "category of prompt": {s.name: s.by_category for s in report.systems},
    }
    breakdowns: dict[str, list[_Breakdown]] = {}
    for by, tables in parts.items():
        columns = list(dict.fromkeys(column for t in tables.values() for column in t))
        columns.sort(key=_by_shape if by == "aspect bucket" else str)
        measured = {m for t in tables.values() for values in t.values() for m in values}
        for measure in [*report.cards, *sorted(measured - set(report.cards))]:
            if measure in measured:
                breakdown = _breakdown(report, by, measure, columns, tables)
                breakdowns.setdefault(by, []).append(breakdown)
    return breakdowns


def _breakdown(
    report: Report,
    by: str,
    measure: str,
    columns: list[str],
    tables: dict[str, dict[str, dict[str, float]]],
) -> _Breakdown:
    card = report.cards.get(measure)
    title, direction = (
        (card.title, "higher" if card.higher_is_better else "lower")
        if card
        else measure_words(measure)
    )
    rows = [
        (s, [tables[s.name].get(column, {}).get(measure, math.nan) for column in columns])
        for s in in_order(report.systems)
    ]
    finite = [v for _, values in rows for v in values if math.isfinite(v)]
    low, high, digits = min(finite, default=0.0), max(finite, default=0.0), digits_for(finite)

    def goodness(value: float) -> float:
        if not direction or high == low or not math.isfinite(value):
            return 0.0
        share = (value - low) / (high - low)
        return round(share if direction == "higher" else 1 - share, 3)

    return _Breakdown(
        by,
        title,
        direction,
        columns,
        [(s, [(number(v, digits), goodness(v)) for v in values]) for s, values in rows],
    )


def _by_shape(bucket: str) -> tuple[float, str]:
    """Sort key: the widest bucket first; text that is not a bucket last."""
    width, cross, height = bucket.partition("x")
    known = cross and width.isdigit() and height.isdigit() and int(height)
    return (-int(width) / int(height) if known else math.inf, bucket)


def _newest_first(steps: Sequence[LineageStep]) -> list[LineageStep]:
    """Sort from the report back to the prompts: each artifact before its inputs."""
    by_key = {step.key: step for step in steps}

    def depth(key: str) -> int:
        return 1 + max((depth(k) for k in by_key[key].inputs if k in by_key), default=0)

    return sorted(steps, key=lambda step: (-depth(step.key), step.stage))


@dataclass(frozen=True)
class _Picture:
    """A picture in the page: its data URI, its own size and the size at which the wall shows it."""

    uri: str
    width: int
    height: int
    shown_width: int
    shown_height: int
    small: bool
    """Whether its pixels are shown as squares, not smoothed."""
    reduced: bool
    """Whether this is a smaller copy of the picture."""


@dataclass(frozen=True)
class _Wall:
    """The sample wall: one prompt and seed per row, one system per column."""

    systems: list[SystemResult]
    rows: list[tuple[WallPicture, list[_Picture | None]]]
    extra: set[str]
    """Systems shown only on demand: the teacher at few steps."""
    reduced: bool
    """Whether some pictures are smaller copies."""

    @classmethod
    def of(cls, report: Report, pictures: Mapping[tuple[str, str], bytes]) -> _Wall:
        shown = {name for key, name in pictures if key in {w.key for w in report.wall}}
        goal = reference(report.systems)

        def place(system: SystemResult) -> tuple[int, int, str]:
            # Teacher at its own steps, student from 1 step up, tuned, teacher at few steps.
            order = 0 if system is goal else {"student": 1, "tuned": 2, "teacher": 3}[system.kind]
            return order, system.steps, system.name

        systems = sorted((s for s in report.systems if s.name in shown), key=place)
        rows = [
            (row, [_embedded(pictures.get((row.key, system.name))) for system in systems])
            for row in report.wall
        ]
        reduced = any(cell.reduced for _, cells in rows for cell in cells if cell)
        extra = {s.name for s in systems if s.kind == "teacher" and s is not goal}
        return cls(systems, rows, extra, reduced)


def _embedded(png: bytes | None) -> _Picture | None:
    """Embed a small picture unchanged and a large one as a smaller WebP: otherwise the page of a
    hub model would have hundreds of megabytes.
    """
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
        reduced = max(width, height) > _LARGEST_AS_IT_IS
        if reduced:
            smaller = picture.convert("RGB")
            smaller.thumbnail((_LARGEST_SHOWN, _LARGEST_SHOWN), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            smaller.save(buffer, "WEBP", quality=90)
            png = buffer.getvalue()
    zoom = min(_WALL_AREA / math.sqrt(width * height), _WALL_SIDE / max(width, height))
    return _Picture(
        f"data:image/{'webp' if reduced else 'png'};base64,{base64.b64encode(png).decode()}",
        width,
        height,
        round(width * zoom),
        round(height * zoom),
        max(width, height) <= _SMALL,
        reduced,
    )
