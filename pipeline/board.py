"""Collects progress, warnings and notes from stage tasks and training workers on any node."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from pipeline.observe import Observer
from schemas.records import ShardStats

Drained = tuple[
    list[tuple[str, str, str]], list[tuple[str, str, float, int]], list[tuple[str, str, int, int]]
]


class ProgressBoard:
    """An actor that collects what stage tasks and training workers report and say."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], tuple[int, int]] = {}
        self._said: list[tuple[str, str, str]] = []
        self._shards: list[tuple[str, str, float, int]] = []

    def post(self, stage: str, unit: str, done: int, total: int) -> None:
        self._latest[stage, unit] = (done, total)

    def say(self, kind: str, stage: str, text: str) -> None:
        self._said.append((kind, stage, text))

    def made(self, stage: str, shard: str, seconds: float, samples: int) -> None:
        self._shards.append((stage, shard, seconds, samples))

    def drain(self) -> Drained:
        """Return what was said, the shards that were made, and the latest progress, since the last
        call.
        """
        progress = [(stage, unit, *counts) for (stage, unit), counts in self._latest.items()]
        said, shards = list(self._said), list(self._shards)
        for taken in (self._latest, self._said, self._shards):
            taken.clear()
        return said, shards, progress


@dataclass(frozen=True)
class Reporter:
    """`StageContext.report` on any node: sends progress without waiting."""

    board: Any
    stage: str

    def __call__(self, unit: str, done: int, total: int) -> None:
        self.board.post.remote(self.stage, unit, done, total)


@dataclass(frozen=True)
class ShardTeller:
    """`StageContext.tell_shard` on any node: sends it without waiting."""

    board: Any
    stage: str

    def __call__(self, stats: ShardStats) -> None:
        self.board.made.remote(self.stage, stats.shard, stats.seconds, stats.samples)


@dataclass(frozen=True)
class Speaker:
    """`StageContext.warn` or `StageContext.note` on any node. Waits for delivery: a stage may end
    right after a warning.
    """

    board: Any
    stage: str
    kind: str

    def __call__(self, text: str) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayActorError):  # a warning must not fail a run
            ray.get(self.board.say.remote(self.kind, self.stage, text))


class Shown:
    """What the progress board holds, and the observer shows."""

    def __init__(self, board: Any, observer: Observer) -> None:
        self._board, self._observer = board, observer
        self._asked: Any = None

    def update(self) -> None:
        """Show what is new. Progress must not fail a run, nor a board that starts again hold it
        up.
        """
        import ray

        is_late = self._asked is not None
        self._asked = self._asked or self._board.drain.remote()
        ready, _ = ray.wait([self._asked], timeout=5)
        if not ready:
            return
        asked, self._asked = self._asked, None
        with contextlib.suppress(ray.exceptions.RayActorError):
            said, shards, progress = ray.get(asked)
            for kind, stage, text in said:
                self._observer.event(kind, stage=stage, text=text)
            for shard in shards:
                self._observer.shard(*shard)
            for row in progress:
                self._observer.progress(*row)
        if is_late:
            self.update()  # what came in meanwhile
