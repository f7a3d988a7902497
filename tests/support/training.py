"""A training worker without Ray Train: what a loop sees of it, and loops on several ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from pipeline.base.stage import StageContext
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

    def save(self, metrics: dict[str, float], fill: Callable[[Path], None]) -> None:
        self.folder.mkdir(exist_ok=True)
        fill(self.folder)


def on_ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` in `world` processes of one group, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_rank, (world, port, work, arguments), nprocs=world)


def _rank(
    rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    work(rank, *arguments)
    distributed.destroy_process_group()
