"""The record of a run in the store: `run.json`, written at its start and at its end, and
`events.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipeline.base.foreign import page, sentence
from pipeline.base.store import ArtifactStore, to_json
from pipeline.observe import Observer
from schemas.errors import CostReached, LaddError, StageFailed


@contextlib.contextmanager
def recorded(
    store: ArtifactStore,
    folder: str,
    summary: dict[str, Any],
    observer: Observer,
    result: Callable[[], dict[str, Any]],
) -> Iterator[None]:
    """Record in `folder` what happens in this context: `summary`, at the end what `result` returns,
    and `status`: running, done, failed, stopped (by Ctrl-C or SIGTERM) or cost reached.

    What is raised passes; an exception that is not ours becomes StageFailed, and the record has its
    traceback.
    """
    store.write(f"{folder}/run.json", to_json(summary | {"status": "running"}))
    status = "failed"
    try:
        yield
        status = "done"
    except CostReached:
        status = "cost reached"
        raise
    except Exception as error:
        failure = error if isinstance(error, LaddError) else StageFailed(sentence(error))
        if failure is not error:
            observer.record("failed", error=page(error))
        has_traceback = any(event["event"] == "failed" for event in observer.events)
        if has_traceback and isinstance(failure, StageFailed):
            failure.add_note(f"its traceback is in {store.url}/{folder}/events.jsonl")
        if failure is error:
            raise
        raise failure from error
    except BaseException:
        status = "stopped"
        raise
    finally:
        ended = {"status": status, "ended": datetime.now(UTC).isoformat(), **result()}
        _write_end(store, folder, summary | ended, observer)


def _to_line(event: dict[str, Any]) -> bytes:
    return (json.dumps(event) + "\n").encode()


def _write_end(
    store: ArtifactStore, folder: str, record: dict[str, Any], observer: Observer
) -> None:
    """Write the record and the events. A store that fails here hides no earlier failure."""
    failure = sys.exception()
    try:
        store.write(f"{folder}/run.json", to_json(record))
        store.write(
            f"{folder}/events.jsonl", b"".join(_to_line(event) for event in observer.events)
        )
    except LaddError as error:
        if failure is None:
            raise
        failure.add_note(f"how the run ended could not be recorded: {error}")
