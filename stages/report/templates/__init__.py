"""The templates of the pages, and the one environment that renders them: it escapes user text."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.report.numbers import count, duration, interval_text, moment, number, percent, share


def template_environment() -> Environment:
    """Every template escapes inserted text, except Markdown, which uses the filter `markdown`."""
    environment = Environment(
        loader=PackageLoader("stages.report", "templates"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "duration": duration,
        "interval_text": interval_text,
        "markdown": as_markdown,
        "moment": moment,
        "number": number,
        "percent": percent,
        "share": share,
    }
    return environment


def as_markdown(text: str) -> str:
    """Escape text so that Markdown shows it verbatim, on one line, also within a table."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~$!&])", r"\\\1", one_line)
