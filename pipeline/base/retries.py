"""Counts the requests of this process that a store or a hub did not answer, and that were tried
again: by the driver, which does so by itself, or by us.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import fsspec

_lock = threading.Lock()
_total = 0


def total() -> int:
    """Return how many there were so far in this process."""
    return _total


def note(count: int = 1) -> None:
    """Take note of some more, such as those of a worker."""
    global _total
    with _lock:
        _total += count


def watch(filesystem: fsspec.AbstractFileSystem) -> None:
    """Count the failed requests of an S3 file system, as far as botocore sees them: a lost
    connection may be replaced below it. Of others, what the driver does is unknown.

    Connects it, so it raises what its credentials raise.
    """
    if hasattr(filesystem, "call_s3"):
        filesystem.connect()
        filesystem.s3.meta.events.register("needs-retry.s3", _look, unique_id="ladd-retries")


def _look(response: tuple[Any, Any] | None, caught_exception: Any, **_: Any) -> None:
    """Look at an answer as botocore does, which asks whether to try again, and have no opinion."""
    status = getattr(response[0], "status_code", 200) if response else 200
    if caught_exception is not None or status >= 500 or status == 429:
        note()
