"""What a training leaves behind while it runs: checkpoints, and of each update a line for them,
TensorBoard, progress and warnings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from pipeline.store import ArtifactStore
from pipeline.training import TrainingRun
from schemas.errors import ArtifactError
from stages.ladd.checkpoint import CheckpointError

STATE, TRACE = "state", "trace.jsonl"
"""What a checkpoint's folder holds: the trainer's state, and the lines of its trace."""


class Trainer(Protocol):
    """What has a state that is saved."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def resume(run: TrainingRun, trainer: Trainer, settings: dict[str, Any], stage: str) -> list[str]:
    """Load the latest checkpoint that can be read, if there are any; returns the lines of its
    trace.

    Says of each that is damaged that it was. Raises ArtifactError when all are.
    """
    damaged: CheckpointError | None = None
    with closing(run.checkpoint_folders()) as folders:
        for folder in folders:
            try:
                trainer.load(folder / STATE)
            except CheckpointError as error:
                damaged = error
                if run.rank == 0:
                    settings["report"](f"warning: {error}; trying the one before it", 0, 0)
            else:
                return (folder / TRACE).read_text().splitlines()
    if damaged is not None:
        raise ArtifactError(
            f"{stage}: {damaged}, and none is before it; `ladd-pipeline run --force {stage}` "
            "trains from the beginning"
        ) from damaged
    return []


def fill_checkpoint(folder: Path, trainer: Trainer, trace: TrainingTrace, rank: int) -> None:
    """Write this rank's part of a checkpoint."""
    trainer.save(folder / STATE)
    if rank == 0:
        (folder / TRACE).write_text("".join(f"{line}\n" for line in trace.lines))


Watch = Callable[[dict[str, Any]], list[str]]
"""Takes an update's metrics, gives new warnings."""


class TrainingTrace:
    """Metrics of every update. Lines are kept on all ranks; the rest is done on rank 0.

    `settings` holds `store`, `folder` and `report`; `resumed` are the lines of the checkpoint that
    training goes on from.
    """

    def __init__(
        self,
        run: TrainingRun,
        settings: dict[str, Any],
        resumed: list[str],
        *,
        total: int,
        log_every: int,
        watch: Watch,
    ) -> None:
        self.lines = resumed
        self._report, self._total, self._log_every = settings["report"], total, log_every
        self._watch = watch
        self._latest: dict[str, Any] = {}
        self._step = json.loads(resumed[-1])["step"] if resumed else 0
        self._board = None
        if run.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            store: ArtifactStore = settings["store"]
            folder = f"{settings['folder']}/tensorboard"
            where = store.path(folder) if store.is_local else f"{store.url.rstrip('/')}/{folder}"
            self._board = SummaryWriter(where, purge_step=self._step + 1 if resumed else None)
            self._report("updates", self._step, total)

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Take in update `step`, counted from 1."""
        self._keep(step, metrics)
        self.warn(self._watch(metrics))
        self._latest |= metrics  # not every update has all, when the heads also learn alone
        if step % self._log_every == 0 or step == self._total:
            self._show(step, self._latest)

    def add_look(self, step: int, metrics: dict[str, float]) -> None:
        """Take in what was seen between updates, behind `step`."""
        self._keep(step, metrics)
        self._show(step, metrics)

    def warn(self, warnings: list[str]) -> None:
        if self._board is not None:
            for text in warnings:
                self._report(f"warning: {text}", self._step, self._total)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _keep(self, step: int, metrics: dict[str, Any]) -> None:
        self._step = step
        self.lines.append(json.dumps({"step": step, **metrics}))

    def _show(self, step: int, metrics: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)
        self._report("updates", step, self._total)
