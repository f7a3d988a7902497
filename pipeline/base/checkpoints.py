"""The checkpoints of a training while it runs: it is held, tidied, and its result taken."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.checkpoint_list import mend_checkpoint_list
from pipeline.base.course import (
    STATE,
    Course,
    Keeping,
    Saved,
    Work,
    keep,
    note_best,
    noted_in,
    saved_in,
)
from pipeline.base.dropping import dropped
from pipeline.base.lease import Lease, held
from pipeline.base.on_objects import fetch
from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext
from pipeline.base.storage_errors import explained
from pipeline.base.store import ArtifactStore
from schemas.errors import StageFailed

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class Trained:
    """What an artifact is taken from."""

    folder: Path
    """Its checkpoint, readable until the training's block ends."""
    work: Work
    details: dict[str, Any]
    """What the manifest says of it: the training's key, the last update, the micro-batch."""


def keep_best(context: StageContext, course: Course, step: int) -> None:
    """Note that the checkpoint after update `step` is the artifact's best so far: it stays."""
    best = Saved(step, context.key if step > course.trunk else "")
    note_best(context.store, context.training_folder, context.key, best)


def tidy_checkpoints(context: StageContext, keeping: Keeping, now: int) -> None:
    """Remove the checkpoints that nobody needs any more after update `now` of the trunk."""
    store, folder = context.store, context.training_folder
    for saved in keeping.expendable(saved_in(store, folder), now, noted_in(store, folder)):
        store.remove(f"{folder}/{saved.name}")


def is_all_there_is(context: StageContext, course: Course) -> bool:
    """Whether a training has ended, and the data that it has read are dropped: then only its
    result can be taken.
    """
    found = course.starts(saved_in(context.store, context.training_folder), context.key)
    has_ended = bool(found) and found[0].step == course.total
    return has_ended and any(dropped(artifact) for artifact in context.inputs.values())


@contextlib.contextmanager
def result_of(context: StageContext, course: Course) -> Iterator[Trained]:
    """Give what a training that has ended left for the artifact. Raises StageFailed for nothing."""
    found = course.starts(saved_in(context.store, context.training_folder), context.key)
    if not found:
        raise StageFailed(f"{context.stage}: training ended without a checkpoint")
    with folder_of(context, found[0], course.takes) as folder:
        work = Work.read(folder) or Work()
        details = {
            "key": context.training,
            "update": found[0].step,
            "micro_batch": work.shown_micro_batch(),
        }
        yield Trained(folder, work, details)


@contextlib.contextmanager
def folder_of(context: StageContext, saved: Saved, takes: str | None = "") -> Iterator[Path]:
    """Give a local folder with a checkpoint: itself, or a copy. Of the files of its state only
    those are copied that hold tensors that a course `takes`: a student is an eighth of the state.
    """
    store, where = context.store, f"{context.training_folder}/{saved.name}"
    if store.is_local:
        yield Path(store.path(where))
        return
    with tempfile.TemporaryDirectory(prefix=scratch_prefix("checkpoint")) as scratch:
        with explained(store.url, "read", where):
            for name in _needed(store, where, takes):
                target = Path(scratch) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                fetch(store.filesystem, store.path(where, name), target)
        yield Path(scratch)


def _needed(store: ArtifactStore, where: str, takes: str | None) -> Iterator[str]:
    for name in store.list(where):
        is_tensors = name.startswith(f"{STATE}/") and name.endswith(".safetensors")
        if not is_tensors or (takes is not None and _holds(store, f"{where}/{name}", takes)):
            yield name


def _holds(store: ArtifactStore, name: str, takes: str) -> bool:
    """Whether a safetensors file holds a tensor whose name begins so. Reads only its header. Says
    yes of a damaged file: whoever opens it names it.
    """
    path, files = store.path(name), store.filesystem
    length = int.from_bytes(files.cat_file(path, start=0, end=8), "little")
    try:
        header = json.loads(files.cat_file(path, start=8, end=8 + length))
    except ValueError:
        return True
    return any(tensor.startswith(takes) for tensor in header.keys() - {"__metadata__"})


@contextlib.contextmanager
def hold_training(context: StageContext, course: Course) -> Iterator[Lease]:
    """Hold a training and the artifact that is taken from it, so that no other run and no `gc`
    touches either; its list of checkpoints is made usable. Waits for a run that trains another
    length, or raises Locked, as the configuration says.
    """
    store, folder = context.store, context.training_folder
    artifact = store.training_folder(context.stage, context.key)
    wait = context.crew.wait if context.crew else None
    with (
        held(store, folder, context.stage, wait) as lease,
        held(store, artifact, context.stage, wait),
    ):
        mend_checkpoint_list(store, folder, context.warn)
        keep(store, folder, course.trunk)
        yield lease


def arrow_filesystem(context: StageContext) -> FileSystem:
    """Return the store's filesystem as Ray Train takes it."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    class ObjectStore(FSSpecHandler):  # type: ignore[misc]
        """Makes no folders: object stores have none, and making one may need permissions on the
        bucket.
        """

        def create_dir(self, path: str, recursive: bool) -> None:
            pass

    if context.store.is_local:
        folder = context.store.path(context.store.training_folder(context.stage))
        Path(folder).mkdir(parents=True, exist_ok=True)
        return LocalFileSystem()
    return PyFileSystem(ObjectStore(context.store.filesystem))
