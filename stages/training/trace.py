"""What a training run records: checkpoints, each update's metrics in the trace, on trackers and in
the progress, and what is measured beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.course import STATE
from pipeline.base.stage import StageContext
from pipeline.base.store import json_object
from pipeline.base.training import TrainingRun
from schemas.errors import ArtifactError, StageFailed
from stages.ladd.checkpoint import CheckpointError
from stages.ladd.health import SKIPPED, Sign, not_finite
from stages.training.trackers import Trackers

SIGNALS = "signals.jsonl"
"""Speed, memory and learning rates at every point of the curves; not reproducible."""
TRACE, LORA = "trace.jsonl", "lora"
"""What a checkpoint's folder holds beside the state: the lines of its trace, and at the end of
`dpo` the adapters.
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


class Watch(Protocol):
    """Takes the metrics of each update and each look, and returns the signs of a bad run that are
    new.
    """

    def observe(self, metrics: dict[str, Any]) -> list[Sign]: ...


class TrainingTrace:
    """Metrics of every update. All ranks keep the lines and watch them; only rank 0 shows them.

    `resumed` are the lines of the checkpoint that the training resumes from. The lines depend on
    nothing but the training, so they repeat exactly; what `signals` returns at every point of the
    curves (speed, memory) may differ and goes to the trackers and to `signals.jsonl`.
    """

    def __init__(
        self,
        run: TrainingRun,
        resumed: list[str],
        *,
        total: int,
        log_every: int,
        watch: Watch,
        max_skipped: int,
        signals: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.lines = resumed
        self._context, self._total, self._log_every = run.context, total, log_every
        self._watch, self._max_skipped, self._signals = watch, max_skipped, signals
        self._latest: dict[str, Any] = {}
        self._skipped = self._skipped_in_row = 0
        rows = [json.loads(line) for line in resumed]
        self._step = rows[-1]["step"] if rows else 0
        for row in rows:
            if "bucket" in row:  # an update, not a look
                self._observe(row)
            else:
                watch.observe(row)
        self._trackers = None
        if run.rank == 0:
            self._trackers = Trackers(run.context, self._step)
            self._signal_lines = _signals_until(run.context, self._step)
            self._context.report("updates", self._step, total)

    def add(self, step: int, metrics: dict[str, Any]) -> list[Sign]:
        """Record the metrics of update `step`, counted from 1; returns the signs that are new.

        A skipped update leaves only that it was skipped. Raises StageFailed when more than
        `max_skipped` updates in a row were skipped.
        """
        lost = ", ".join(not_finite(metrics))
        if SKIPPED in metrics:
            metrics = {name: metrics[name] for name in ("bucket", SKIPPED) if name in metrics}
        self._keep(step, metrics)
        signs = self._observe(metrics)
        if SKIPPED in metrics:
            self._tell_skipped(step, lost)
        self.warn([sign.text for sign in signs])
        self._latest |= metrics  # updates that train only the heads lack some metrics
        if step % self._log_every == 0 or step == self._total:
            self._show(step, self._latest | {SKIPPED: self._skipped} | self._signal(step))
        return signs

    def add_look(self, step: int, metrics: dict[str, Any]) -> list[Sign]:
        """Record the metrics of a held-out look after update `step`; returns the signs that are
        new.
        """
        self._keep(step, metrics)
        self._show(step, metrics)
        if self._trackers is not None:
            words = [f"{name.replace('_', ' ')} {v:.4g}" for name, v in _numbers(metrics).items()]
            self._context.note(f"look after update {step:,}: {', '.join(words)}")
        signs = self._watch.observe(metrics)
        self.warn([sign.text for sign in signs])
        return signs

    def warn(self, warnings: list[str]) -> None:
        if self._trackers is not None:
            for text in warnings:
                self._context.warn(text)

    def publish(self) -> None:
        """Bring curves and signals to the store."""
        if self._trackers is not None:
            self._trackers.publish()
            self._write_signals()

    def close(self) -> None:
        if self._trackers is not None:
            self._trackers.close()
            self._write_signals()

    def _write_signals(self) -> None:
        content = "".join(f"{line}\n" for line in self._signal_lines)
        self._context.store.write(f"{self._context.folder}/{SIGNALS}", content.encode())

    def _keep(self, step: int, metrics: dict[str, Any]) -> None:
        self._step = step
        self.lines.append(json.dumps({"step": step, **metrics}))

    def _observe(self, metrics: dict[str, Any]) -> list[Sign]:
        skipped = SKIPPED in metrics
        self._skipped += skipped
        self._skipped_in_row = self._skipped_in_row + 1 if skipped else 0
        return self._watch.observe(metrics)

    def _tell_skipped(self, step: int, lost: str) -> None:
        """Warn of the first, second, fourth, eighth, ... skipped update; end the run if there were
        too many in a row.
        """
        stage, count = self._context.stage, self._skipped
        if self._skipped_in_row > self._max_skipped:
            raise StageFailed(
                f"{stage}: update {step}: {lost} is not a finite number; the last good checkpoint "
                f"is kept, but after {self._skipped_in_row} such updates in a row training from it "
                f"would diverge again. Lower the learning rates of {stage}: that starts a new "
                "training run"
            )
        if count & (count - 1) == 0:
            self.warn(
                [
                    f"update {step} is skipped, number {count} of this training: {lost} is not a "
                    "finite number"
                ]
            )

    def _signal(self, step: int) -> dict[str, float]:
        if self._trackers is None:
            return {}
        signals = self._signals()
        self._signal_lines.append(json.dumps({"step": step, **signals}))
        return signals

    def _show(self, step: int, metrics: dict[str, Any]) -> None:
        if self._trackers is None:
            return
        self._trackers.log(step, _numbers(metrics))
        self._context.report("updates", step, self._total)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _signals_until(context: StageContext, step: int) -> list[str]:
    """The lines of an earlier start's signals up to the update that it resumes from."""
    content = context.store.read(f"{context.folder}/{SIGNALS}") if step else None
    lines = content.decode(errors="replace").splitlines() if content is not None else []
    rows = ((line, json_object(line.encode()) or {}) for line in lines)
    return [line for line, row in rows if 0 < row.get("step", 0) <= step]
