"""What the user sees while stages run: bars on a terminal, else one line per stage every 30 s, or
JSON lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.base import metrics
from schemas.addresses import public_content

LINE_EVERY_S = 30.0
_COUNTED = {"warning": "ladd_warnings", "failed": "ladd_failures"}
"""Events that are counted, by the measure."""


@dataclass
class _Seen:
    started: float
    first: int
    said: float | None = None
    said_done: int = -1


@dataclass
class Observer:
    """Shows progress and events; `log_format` is text or json. Keeps every event for
    `events.jsonl`.
    """

    log_format: str = "text"
    clock: Callable[[], float] = time.monotonic
    events: list[dict[str, Any]] = field(default_factory=list)
    run: str = ""
    """The run's folder below `runs/`, which is on every line of its log."""
    followers: list[Callable[[Mapping[str, Any]], None]] = field(default_factory=list)
    """What else takes the events of a run, and its shards."""

    def __post_init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str, str], Any] = {}
        if self.log_format == "text" and self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )

    def __enter__(self) -> Observer:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def event(self, kind: str, **fields: Any) -> None:
        """Show and keep an event: a stage started, done or failed; a warning."""
        row = self.record(kind, **fields)
        self._log(row)
        if self.log_format != "json":
            text = "  ".join(str(value) for value in public_content(fields).values())
            (self._bars.console if self._bars else self._console).print(
                f"{kind}  {text}", markup=False, soft_wrap=True
            )

    def record(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Keep an event for `events.jsonl` without showing it: tracebacks of unexpected errors."""
        row = self._row(kind, **fields)
        self.events.append(row)
        self._follow(row)
        if kind in _COUNTED:
            metrics.count(_COUNTED[kind], stage=str(fields.get("stage", "")))
        return row

    def _row(self, kind: str, **fields: Any) -> dict[str, Any]:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = public_content(fields)
        return {"time": now} | ({"run": self.run} if self.run else {}) | {"event": kind, **told}

    def started(self, stage: str, key: str) -> None:
        """Keep that a stage was started; show it in JSON, where it is not below `queued`."""
        self._log(self.record("started", stage=stage, key=key))

    def shard(self, stage: str, shard: str, seconds: float, samples: int) -> None:
        """Log a shard that a worker took `seconds` for. A run may have too many to keep them."""
        row = self._row("shard", stage=stage, shard=shard, seconds=seconds, samples=samples)
        self._follow(row)
        self._log(row)

    def _log(self, row: dict[str, Any]) -> None:
        if self.log_format == "json":
            print(json.dumps(row), file=sys.stderr, flush=True)

    def _follow(self, row: Mapping[str, Any]) -> None:
        for follower in self.followers:
            follower(row)

    def warn(self, stage: str, text: str) -> None:
        """Show a stage's warning at once, and keep it."""
        self.event("warning", stage=stage, text=text)

    def note(self, stage: str, text: str) -> None:
        """Tell of what was found, as of a warning."""
        self.event("note", stage=stage, text=text)

    def progress(self, stage: str, unit: str, done: int, total: int) -> None:
        """Show how far a stage is."""
        now, key = self.clock(), (stage, unit)
        seen = self._seen.setdefault(key, _Seen(now, done))
        rate = (done - seen.first) / max(now - seen.started, 1e-9)
        left = (total - done) / rate if rate > 0 and total else None
        metrics.put("ladd_progress_done", done, stage=stage, unit=unit)
        metrics.put("ladd_progress_goal", total, stage=stage, unit=unit)
        if left is not None:
            metrics.put("ladd_seconds_left", left, stage=stage, unit=unit)
        if self._bars:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(f"{stage} {unit}", total=total or None)
            self._bars.update(self._tasks[key], completed=done, total=total or None)
            return
        finished = total > 0 and done >= total
        soon = seen.said is not None and now - seen.said < LINE_EVERY_S
        if done == seen.said_done or (soon and not finished):
            return
        seen.said, seen.said_done = now, done
        if self.log_format == "json":
            row = self._row("progress", stage=stage, unit=unit, done=done, total=total)
            self._log(row | {"per_second": round(rate, 3), "seconds_left": left and round(left)})
        else:
            tail = f"  {rate:.2f}/s" if rate > 0 else ""
            tail += f"  {_clock(left)} left" if left and not finished else ""
            self._console.print(f"{stage}  {done}/{total or '?'} {unit}{tail}", markup=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
