"""Sends a run's spans to an OpenTelemetry collector: the run, each of its stages, and each shard
that was made. Warnings and notes are events of the stage's span.

Where the collector is, and what it asks for, is in OpenTelemetry's own variables, such as
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from schemas.errors import ConfigError

_GIVE_UP_SECONDS = 10
"""For how long the end of a run waits for a collector that does not answer."""
_ATTRIBUTES = (str, bool, int, float)


class RunTrace:
    """The spans of one run. Follows the rows that an observer keeps or shows."""

    def __init__(self, provider: Any, run: str) -> None:
        from opentelemetry import trace

        self._trace, self._provider = trace, provider
        self._tracer = provider.get_tracer("ladd-pipeline")
        self._root = self._tracer.start_span("run", attributes={"ladd.run": run})
        self._stages: dict[str, Any] = {}

    def follow(self, row: Mapping[str, Any]) -> None:
        """Take one row of the run's log."""
        kind, stage = row["event"], str(row.get("stage", ""))
        span = self._stages.get(stage)
        if kind == "started":
            self._stages[stage] = self._span(stage, self._root, ladd=row)
        elif kind == "shard":
            end = time.time_ns()
            begin = end - int(row["seconds"] * 1e9)
            self._span("shard", span or self._root, start=begin, ladd=row).end(end)
        elif kind == "done" and span is not None:
            self._stages.pop(stage).end()
        elif kind == "failed":
            text = str(row["error"]).strip().splitlines()[-1]
            (span or self._root).set_status(self._trace.StatusCode.ERROR, text)
            if span is not None:
                self._stages.pop(stage).end()
        elif "text" in row:
            (span or self._root).add_event(kind, {"text": row["text"]})

    def end(self, failed: BaseException | None) -> None:
        """End all spans, and wait for their way to the collector."""
        if failed is not None:
            text = f"{type(failed).__name__}: {failed}"
            for span in (*self._stages.values(), self._root):
                span.set_status(self._trace.StatusCode.ERROR, text)
        for span in (*self._stages.values(), self._root):
            span.end()
        self._provider.force_flush(_GIVE_UP_SECONDS * 1000)
        self._provider.shutdown()

    def _span(
        self, name: str, above: Any, *, ladd: Mapping[str, Any], start: int | None = None
    ) -> Any:
        told = {
            f"ladd.{field}": value
            for field, value in ladd.items()
            if field not in ("event", "time", "run") and isinstance(value, _ATTRIBUTES)
        }
        context = self._trace.set_span_in_context(above)
        return self._tracer.start_span(name, context, attributes=told, start_time=start)


@contextlib.contextmanager
def traced(
    wanted: bool,
    run: str,
    followers: list[Callable[[Mapping[str, Any]], None]],
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Trace a run, if that is wanted, until the block ends. A collector that does not answer is
    warned of at the end, and harms nothing. Raises ConfigError if the exporter is not installed.
    """
    if not wanted:
        yield
        return
    trace, refused = RunTrace(_provider(), run), _Refused()
    followers.append(trace.follow)
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        followers.remove(trace.follow)
        trace.end(failure)
        refused.ended()
        if refused.count:
            warn(
                "the OpenTelemetry collector did not take all spans of this run; is "
                "OTEL_EXPORTER_OTLP_ENDPOINT right? (default http://localhost:4318)"
            )


class _Refused(logging.Handler):
    """Counts what OpenTelemetry says on its logger of spans that it could not send, and keeps it
    from the terminal.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self._logger = logging.getLogger("opentelemetry")
        self._propagated, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1

    def ended(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated


def _provider() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "traces: OpenTelemetry's exporter is not installed; pip install 'ladd-pipeline[traces]'"
        ) from error
    told = {"service.name": "ladd-pipeline", "service.version": metadata.version("ladd-pipeline")}
    provider = TracerProvider(resource=Resource.create(told), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=_GIVE_UP_SECONDS)))
    return provider
