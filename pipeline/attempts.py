"""Which stages of a run have lost a process, and whether they are tried again."""

from __future__ import annotations

import time

from pipeline.base import metrics
from pipeline.observe import Observer
from schemas.errors import LaddError, Locked, ProcessLost

_LEFTOVERS_SECONDS = 60.0
"""For how long after the loss of a stage's process others of the same stage may still be ending."""


class StageLost(ProcessLost):
    """A stage has lost its process more often than it is tried again."""


class Attempts:
    """Which stages have lost a process, and whether they may be tried again."""

    def __init__(self, retries: int, observer: Observer) -> None:
        self._retries, self._observer = retries, observer
        self._lost: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}

    def may_try_again(self, name: str, error: LaddError) -> bool:
        """Return whether to try a stage again that has failed with this error, and say so.

        A stage that was lost a moment ago may find itself locked by what is left of it. Raises
        StageLost if a stage was lost too often.
        """
        now = time.monotonic()
        if isinstance(error, Locked):
            return name in self._lost and now - self._lost_at[name] < _LEFTOVERS_SECONDS
        if not isinstance(error, ProcessLost):
            return False
        count = self._lost[name] = self._lost.get(name, 0) + 1
        self._lost_at[name] = now
        if count <= self._retries:
            metrics.count("ladd_retries", stage=name)
            what = _without(name, error)
            self._observer.warn(
                name, f"{what}; the stage is tried again ({count} of {self._retries})"
            )
            return True
        raise StageLost(
            f"{name}: {_without(name, error)}, {count} times in all; is the machine short of "
            "memory? What is finished is kept"
        ) from error


def _without(name: str, error: LaddError) -> str:
    return str(error).removeprefix(f"{name}: ")
