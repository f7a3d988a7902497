"""Formats of numbers, durations and dates in the report and the model card."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from schemas.report import Interval

NOTHING, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""


def number(value: float | None, digits: int | None = None) -> str:
    """Format with three decimals below ten, fewer above; a dash if there is no finite number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:,.{digits_for([value]) if digits is None else digits}f}"
    return text.replace("-", MINUS)


def interval_text(interval: Interval | None, digits: int | None = None) -> str:
    """Format as `[low, high]`; nothing if there is none."""
    if interval is None:
        return ""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def digits_for(values: Iterable[float]) -> int:
    """Number of decimals that suits a whole column of numbers."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return next((digits for digits, below in ((3, 10), (2, 100), (1, 1000)) if largest < below), 0)


def count(value: int) -> str:
    return f"{value:,}"


def percent(value: float) -> str:
    """Format a fraction in whole percent, with one decimal if it is near 0 or 1."""
    if not math.isfinite(value):
        return NOTHING
    digits = 1 if 0 < value < 0.02 or 0.98 < value < 1 else 0
    return f"{100 * value:.{digits}f}{SPACE}%"


def share(value: float, whole: float) -> float:
    """`value` as a fraction of `whole`, for the length of a bar; 0 unless `whole` is positive."""
    return round(value / whole, 4) if whole > 0 else 0.0


def duration(seconds: float) -> str:
    """Format seconds for people: 43 ms, 1.24 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    return _spoken(seconds).replace(" ", SPACE)


def _spoken(seconds: float) -> str:
    """Choose the unit by the rounded value, so that 59.97 s is 1 min 00 s and not 60.0 s."""
    if not math.isfinite(seconds):
        return NOTHING
    milliseconds = 1000 * seconds
    if round(milliseconds) < 1000:
        return f"{milliseconds:.{0 if round(milliseconds, 1) >= 10 else 1}f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.{2 if round(seconds, 2) < 10 else 1}f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(iso: str) -> str:
    """Format a date and time in UTC: 23 November 2025, 13:35 UTC."""
    time = datetime.fromisoformat(iso)
    time = time.astimezone(UTC) if time.tzinfo else time
    return f"{time.day} {time:%B %Y, %H:%M} UTC"
