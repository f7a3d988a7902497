"""What a training run records: checkpoints, and each update's metrics in the trace, on TensorBoard
and in the progress.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.store import json_object
from pipeline.base.training import TrainingRun
from schemas.errors import ArtifactError
from stages.ladd.checkpoint import CheckpointError

_BOARD = "tensorboard"
STATE, TRACE, LORA = "state", "trace.jsonl", "lora"
"""The contents of a checkpoint's folder: the trainer's state, the lines of its trace, and at the
end of `dpo` the adapters.
"""


class Trainer(Protocol):
    """Anything whose state can be saved and loaded."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def resume(run: TrainingRun, trainer: Trainer) -> list[str]:
    """Load the latest readable checkpoint, if there are any checkpoints; returns its trace's lines.

    Warns about each damaged checkpoint. Raises ArtifactError when all are damaged.
    """
    stage = run.context.stage
    damaged: CheckpointError | None = None
    with closing(run.checkpoint_folders()) as folders:
        for folder in folders:
            try:
                trainer.load(folder / STATE)
                lines = _lines_of(folder)
            except CheckpointError as error:
                damaged = error
                if run.rank == 0:
                    run.context.warn(f"{error}; trying the previous one")
            else:
                return lines
    if damaged is not None:
        raise ArtifactError(
            f"{stage}: {damaged}, and there is no earlier one; `ladd-pipeline run --force {stage}` "
            "trains from scratch"
        ) from damaged
    return []


def _lines_of(folder: Path) -> list[str]:
    """Read a checkpoint's trace. Raises CheckpointError unless each line is what we write."""
    try:
        lines = (folder / TRACE).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the checkpoint {folder} has no readable {TRACE}") from error
    for number, line in enumerate(lines, 1):
        if not isinstance((json_object(line.encode()) or {}).get("step"), int):
            raise CheckpointError(
                f"the checkpoint {folder} has a damaged {TRACE}: line {number} is no update"
            )
    if not lines:
        raise CheckpointError(f"the checkpoint {folder} has an empty {TRACE}")
    return lines


def fill_checkpoint(folder: Path, trainer: Trainer, trace: TrainingTrace, rank: int) -> None:
    """Write this rank's part of a checkpoint."""
    trainer.save(folder / STATE)
    if rank == 0:
        (folder / TRACE).write_text("".join(f"{line}\n" for line in trace.lines))
        trace.publish()


Watch = Callable[[dict[str, Any]], list[str]]
"""Takes an update's metrics and returns new warnings."""


class TrainingTrace:
    """Metrics of every update. All ranks keep the lines; only rank 0 shows them.

    `resumed` are the lines of the checkpoint that the training resumes from.
    """

    def __init__(
        self,
        run: TrainingRun,
        resumed: list[str],
        *,
        total: int,
        log_every: int,
        watch: Watch,
    ) -> None:
        self.lines = resumed
        self._context, self._total, self._log_every = run.context, total, log_every
        self._watch = watch
        self._latest: dict[str, Any] = {}
        self._step = json.loads(resumed[-1])["step"] if resumed else 0
        self._board = None
        if run.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            # Elsewhere TensorBoard's own writer would not know what fsspec knows: keys, endpoint.
            store, self._scratch = run.context.store, None
            if store.is_local:
                where = store.path(f"{run.context.folder}/{_BOARD}")
            else:
                self._scratch = tempfile.TemporaryDirectory(prefix="ladd-tensorboard-")
                where = self._scratch.name
            self._board = SummaryWriter(where, purge_step=self._step + 1 if resumed else None)
            self._context.report("updates", self._step, total)

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of update `step`, counted from 1."""
        self._keep(step, metrics)
        self.warn(self._watch(metrics))
        self._latest |= metrics  # updates that train only the heads lack some metrics
        if step % self._log_every == 0 or step == self._total:
            self._show(step, self._latest)

    def add_look(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a held-out look after update `step`."""
        self._keep(step, metrics)
        self._show(step, metrics)

    def warn(self, warnings: list[str]) -> None:
        if self._board is not None:
            for text in warnings:
                self._context.warn(text)

    def publish(self) -> None:
        """Upload TensorBoard's files, where the store is not a folder."""
        if self._board is None or self._scratch is None:
            return
        self._board.flush()
        for path in Path(self._scratch.name).iterdir():
            self._context.store.put(path, f"{self._context.folder}/{_BOARD}/{path.name}")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
            self.publish()

    def _keep(self, step: int, metrics: dict[str, Any]) -> None:
        self._step = step
        self.lines.append(json.dumps({"step": step, **metrics}))

    def _show(self, step: int, metrics: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)
        self._context.report("updates", step, self._total)
