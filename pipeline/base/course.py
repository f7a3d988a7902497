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
from typing import Any

from pipeline.base.checkpoint_list import whole_checkpoints
from pipeline.base.store import ArtifactStore, json_object

_NAME = re.compile(r"checkpoint_(\d{9})(?:_(.+))?")
_KEPT = "kept.json"
"""In a training's folder: the updates from which artifacts were taken, and each one's best."""
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


STATE = "state"
"""The folder of a checkpoint that holds the training's tensors."""


@dataclass(frozen=True)
class Course:
    """Which updates an artifact is taken from."""

    trunk: int
    """The last update of the trunk: the artifact's tail begins after it."""
    total: int
    """The artifact's last update, at the latest."""
    takes: str | None = ""
    """The artifact is made of the tensors in a checkpoint's state whose names begin so; None: of
    none of them.
    """

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

    def expendable(self, there: Iterable[Saved], now: int, noted: set[Saved]) -> list[Saved]:
        """Return what a run that has come to update `now` can remove; `noted` stay."""
        there = sorted(there)
        trunk = [one for one in there if not one.tail]
        tails = [[one for one in there if one.tail == tail] for tail in {one.tail for one in there}]
        kept = noted | {
            one for one in trunk if self.every is not None and one.step % self.every == 0
        }
        for part in (*tails, [one for one in trunk if one.step <= now]):
            kept |= {*part[-self.latest :]}
        return [one for one in there if one not in kept]


def saved_in(store: ArtifactStore, folder: str) -> list[Saved]:
    """Return the checkpoints in a training's folder that were saved to the end."""
    names = whole_checkpoints(store, folder) or ()
    return [saved for name in names if (saved := Saved.parse(name)) is not None]


def noted_in(store: ArtifactStore, folder: str) -> set[Saved]:
    """Return the checkpoints of a training that artifacts need: those that they were taken from,
    and the best of each by its figure. A damaged note says nothing.
    """
    note = _note(store, folder)
    best = {Saved.parse(str(name)) for name in _best(note).values()}
    return {Saved(step) for step in _steps(note)} | {saved for saved in best if saved is not None}


def keep(store: ArtifactStore, folder: str, step: int) -> None:
    """Note that an artifact is taken from a training after this update: its checkpoint stays."""
    note = _note(store, folder)
    if step not in _steps(note):
        _write_note(store, folder, {**note, "steps": sorted({*_steps(note), step})})


def note_best(store: ArtifactStore, folder: str, key: str, best: Saved) -> None:
    """Note which checkpoint is the best of an artifact so far: it stays, in place of another."""
    note = _note(store, folder)
    if _best(note).get(key) != best.name:
        _write_note(store, folder, {**note, "best": {**_best(note), key: best.name}})


def _note(store: ArtifactStore, folder: str) -> dict[str, Any]:
    return json_object(store.read(f"{folder}/{_KEPT}") or b"") or {}


def _write_note(store: ArtifactStore, folder: str, note: dict[str, Any]) -> None:
    store.write(f"{folder}/{_KEPT}", json.dumps(note).encode())


def _steps(note: dict[str, Any]) -> set[int]:
    steps = note.get("steps")
    return {step for step in steps if isinstance(step, int)} if isinstance(steps, list) else set()


def _best(note: dict[str, Any]) -> dict[str, Any]:
    best = note.get("best")
    return best if isinstance(best, dict) else {}


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
