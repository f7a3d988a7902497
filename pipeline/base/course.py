"""The way from a training to an artifact, and which checkpoints of a training are kept.

A training is one trunk of updates, whose checkpoints artifacts of every length share. What an
artifact needs beyond it (the decay of its learning rate, a last look) is its tail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.base.checkpoint_list import whole_checkpoints
from pipeline.base.store import ArtifactStore, json_object

_NAME = re.compile(r"checkpoint_(\d{9})(?:_(.+))?")
_KEPT = "kept.json"
"""In a training's folder: the updates from which artifacts were taken."""
WORK = "work.json"
"""In a checkpoint's folder."""


@dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint by its name: after which update, and in the tail of which artifact's key."""

    step: int
    tail: str = ""

    @property
    def name(self) -> str:
        return f"checkpoint_{self.step:09d}" + (f"_{self.tail}" if self.tail else "")

    @classmethod
    def parse(cls, name: str) -> Saved | None:
        """Return what a folder's name says, or None for another folder."""
        found = _NAME.fullmatch(name)
        return cls(int(found[1]), found[2] or "") if found else None


@dataclass(frozen=True)
class Course:
    """Which updates an artifact is taken from."""

    trunk: int
    """The last update of the trunk: the artifact's tail begins after it."""
    total: int
    """The artifact's last update, at the latest."""

    def starts(self, there: Iterable[Saved], key: str) -> list[Saved]:
        """Return the checkpoints that the artifact `key` can go on from, the best first: those of
        its own tail, then those of the trunk up to `trunk`, the latest first.
        """
        own = [one for one in there if one.tail == key]
        shared = [one for one in there if not one.tail and one.step <= self.trunk]
        return [*sorted(own, reverse=True), *sorted(shared, reverse=True)]


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints of a training stay."""

    latest: int
    """How many of the latest: of the trunk, of the trunk up to where the run is, and of each
    tail.
    """
    every: int | None
    """Those of the trunk after each multiple of it."""

    def expendable(self, there: Iterable[Saved], now: int, taken: set[int]) -> list[Saved]:
        """Return what a run that has come to update `now` can remove. `taken` are the updates from
        which artifacts were taken.
        """
        there = sorted(there)
        trunk = [one for one in there if not one.tail]
        tails = [[one for one in there if one.tail == tail] for tail in {one.tail for one in there}]
        kept = {one for one in trunk if one.step in taken}
        kept |= {one for one in trunk if self.every is not None and one.step % self.every == 0}
        for part in (*tails, [one for one in trunk if one.step <= now]):
            kept |= {*part[-self.latest :]}
        return [one for one in there if one not in kept]


def saved_in(store: ArtifactStore, folder: str) -> list[Saved]:
    """Return the checkpoints in a training's folder that were saved to the end."""
    names = whole_checkpoints(store, folder) or ()
    return [saved for name in names if (saved := Saved.parse(name)) is not None]


def taken_from(store: ArtifactStore, folder: str) -> set[int]:
    """Return the updates of a training that artifacts were taken from; none if the note of them is
    damaged.
    """
    steps = (json_object(store.read(f"{folder}/{_KEPT}") or b"") or {}).get("steps")
    return {step for step in steps if isinstance(step, int)} if isinstance(steps, list) else set()


def keep(store: ArtifactStore, folder: str, step: int) -> None:
    """Note that an artifact is taken from a training after this update: its checkpoint stays."""
    steps = taken_from(store, folder)
    if step not in steps:
        store.write(f"{folder}/{_KEPT}", json.dumps({"steps": sorted({*steps, step})}).encode())


@dataclass(frozen=True)
class Work:
    """What it took to come to a checkpoint."""

    device_hours: float = 0.0
    micro_batch: tuple[tuple[int, int], ...] = ()
    """From which update on how many samples were in a forward pass, at most."""

    def on(self, update: int, micro_batch: int) -> Work:
        """Return this work, gone on with from an update in such micro-batches."""
        if self.micro_batch and self.micro_batch[-1][1] == micro_batch:
            return self
        return replace(self, micro_batch=(*self.micro_batch, (update, micro_batch)))

    def write(self, folder: Path) -> None:
        (folder / WORK).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Work | None:
        """Read what `write` wrote into a checkpoint's folder; None if it is damaged."""
        path = folder / WORK
        if not path.exists():
            return cls()
        row = json_object(path.read_bytes()) or {}
        try:
            hours = float(row["device_hours"])
            rows = tuple((int(update), int(size)) for update, size in row["micro_batch"])
        except (KeyError, OverflowError, TypeError, ValueError):
            return None
        return cls(hours, rows) if 0 <= hours < float("inf") else None

    def shown_micro_batch(self) -> int | list[dict[str, int]] | None:
        """Return the micro-batch as a manifest has it: a number, or a list if it changed."""
        if len(self.micro_batch) <= 1:
            return self.micro_batch[0][1] if self.micro_batch else None
        return [{"from_update": update, "micro_batch": size} for update, size in self.micro_batch]


def number_list(steps: Sequence[int]) -> str:
    """Return numbers of updates as a sentence has them: `2,000, 4,000 and 6,000`."""
    texts = [f"{step:,}" for step in steps]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)
