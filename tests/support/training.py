"""A training worker without Ray Train: what a loop sees of it, and loops on several ranks."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from pipeline.base.checkpoint_list import list_checkpoints, whole_checkpoints
from pipeline.base.checkpoints import (
    Trained,
    folder_of,
    hold_training,
    is_all_there_is,
    keep_best,
    result_of,
    tidy_checkpoints,
)
from pipeline.base.course import Course, Saved, Work, saved_in
from pipeline.base.stage import StageContext
from pipeline.base.training import TrainingPlan
from stages.training.trace import TRACE


class Run:
    """What Ray Train gives to a worker; checkpoints go to a folder, which may hold one already."""

    context: StageContext

    def __init__(self, folder: Path, rank: int = 0, world: int = 1) -> None:
        self.folder, self.rank, self.world = folder, rank, world
        self.cpus, self.gpus = 1.0, 0

    def checkpoint_folders(self) -> Iterator[Path]:
        if (self.folder / TRACE).exists():
            yield self.folder

    def save(
        self,
        metrics: dict[str, float],
        fill: Callable[[Path], None],
        step: int,
        *,
        in_tail: bool = False,
        best: int | None = None,
    ) -> None:
        self.folder.mkdir(exist_ok=True)
        fill(self.folder)


class StoredRun(Run):
    """The only worker of a training whose checkpoints are in the store, as Ray Train puts them."""

    def __init__(
        self,
        context: StageContext,
        plan: TrainingPlan,
        course: Course,
        lives: int,
        die: Callable[[], None],
    ) -> None:
        super().__init__(Path())
        self.lives, self.die = lives, die
        self.context, self.plan, self.course = context, plan, course
        self.work = Work().on(0, plan.micro_batch)

    def checkpoint_folders(self) -> Iterator[Path]:
        store, where = self.context.store, self.context.training_folder
        for saved in self.course.starts(saved_in(store, where), self.context.key):
            with folder_of(self.context, saved) as folder:
                self.work = Work.read(folder).on(saved.step, self.plan.micro_batch)
                yield folder

    def save(
        self,
        metrics: dict[str, float],
        fill: Callable[[Path], None],
        step: int,
        *,
        in_tail: bool = False,
        best: int | None = None,
    ) -> None:
        if best is not None:
            keep_best(self.context, self.course, best)
        store, where = self.context.store, self.context.training_folder
        tidy_checkpoints(self.context, self.plan.keeping, min(step, self.course.trunk))
        saved = Saved(step, self.context.key if in_tail else "")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            fill(folder)
            self.work.write(folder)
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                store.put(path, f"{where}/{saved.name}/{path.relative_to(folder).as_posix()}")
        names = {*(whole_checkpoints(store, where) or ()), saved.name}
        list_checkpoints(store, where, sorted(names))
        self.lives -= 1
        if self.lives == 0:
            self.die()


def _interrupt() -> None:
    raise KeyboardInterrupt


def training_here(
    lives: int = 0, calls: list[str] | None = None, die: Callable[[], None] = _interrupt
) -> Callable[..., Any]:
    """Return a `train_on_ray` with one worker in this process, whatever the plan says. After
    `lives` checkpoints, unless that is 0, `die` is called; `calls` gets from which update it
    starts.
    """

    @contextlib.contextmanager
    def train_on_ray(
        context: StageContext, worker: Callable[[Any], None], plan: TrainingPlan, course: Course
    ) -> Iterator[Trained]:
        if is_all_there_is(context, course):
            with result_of(context, course) as trained:
                yield trained
            return
        with hold_training(context, course):
            there = saved_in(context.store, context.training_folder)
            starts = course.starts(there, context.key)
            if calls is not None:
                calls.append(f"from {starts[0].step}" if starts else "new")
            worker(StoredRun(context, plan, course, lives, die))
            tidy_checkpoints(context, plan.keeping, course.trunk)
            with result_of(context, course) as trained:
                yield trained

    return train_on_ray


def on_ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in `world` processes of one group, one thread each.

    They are forked from a process that has imported what they need: that takes longer than most of
    their work.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["stages.training.distill_loop", "stages.teachers.sd3"])
    multiprocessing.start_processes(
        _rank, (world, port, work, arguments), nprocs=world, start_method="forkserver"
    )


def _rank(
    rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    work(rank, *arguments)
    distributed.destroy_process_group()
