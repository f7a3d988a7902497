"""Ray Train wiring: a run is named after its artifact's key, so it resumes itself and never
another's.

The one place that knows Ray Train. A stage's worker function gets a `TrainingRun` and stays free of
Ray.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stage import StageContext
from schemas.errors import LaddError, StageFailed

_SUFFIX = "training"


@dataclass(frozen=True)
class TrainingPlan:
    """What Ray Train needs to know."""

    workers: int
    cpus_per_worker: float | None
    """Empty shares the cluster's CPUs."""
    use_gpu: bool | None
    """Empty takes GPUs where there are any."""
    retries: int
    checkpoints_kept: int


class TrainingRun:
    """What a worker sees: its place, the checkpoint to resume from, and how to report."""

    def __init__(self, cpus: float) -> None:
        from ray import train

        self._train = train
        place = train.get_context()
        self.rank, self.world = place.get_world_rank(), place.get_world_size()
        self.cpus = cpus

    @contextlib.contextmanager
    def resume_folder(self) -> Iterator[Path | None]:
        """The folder of the latest checkpoint, or None at the beginning."""
        checkpoint = self._train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def save(self, metrics: dict[str, float], fill: Callable[[Path], None]) -> None:
        """Make a checkpoint: `fill` writes this rank's files into a folder, and the folders of all
        ranks are laid together. Every rank must call this. Training goes on while they are sent.
        """
        folder = tempfile.mkdtemp(prefix="ladd-checkpoint-")
        fill(Path(folder))
        self._train.report(
            metrics,
            checkpoint=self._train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=self._train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


def train_on_ray(
    context: StageContext,
    worker: Callable[[TrainingRun, dict[str, Any]], None],
    settings: dict[str, Any],
    plan: TrainingPlan,
) -> tuple[Path, float]:
    """Run `worker(run, settings)` on every worker, resuming what a former run of this key left.

    Returns a local copy of the last checkpoint's folder (the caller's to delete) and the devices
    held. Raises StageFailed with the worker's own sentence.
    """
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    resources = ray.cluster_resources()
    use_gpu = plan.use_gpu if plan.use_gpu is not None else resources.get("GPU", 0) >= plan.workers
    cpus = plan.cpus_per_worker or max(1.0, resources.get("CPU", 1) // plan.workers)
    trainer = TorchTrainer(
        _entry,
        train_loop_config={
            "worker": worker,
            "settings": settings,
            "cpus": cpus,
            "context": context,
            "cwd": os.getcwd(),
        },
        scaling_config=train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=train.RunConfig(
            name=context.key,
            storage_path=context.store.path(_SUFFIX, context.stage),
            storage_filesystem=_arrow_filesystem(context),
            failure_config=train.FailureConfig(max_failures=plan.retries),
            checkpoint_config=train.CheckpointConfig(num_to_keep=plan.checkpoints_kept),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise StageFailed(_reason(error)) from error
    verdict = context.store.read(_verdict(context))
    if verdict is not None:
        context.store.remove(_verdict(context))
        raise StageFailed(verdict.decode())
    if result.checkpoint is None:
        raise StageFailed(f"{context.stage}: training ended without a checkpoint")
    folder = Path(tempfile.mkdtemp(prefix="ladd-checkpoint-"))
    result.checkpoint.to_directory(str(folder))
    return folder, plan.workers * (1 if use_gpu else cpus)


def _entry(loop: dict[str, Any]) -> None:
    """What each Ray Train worker runs.

    An error of ours would be the same at every new start: it is left on the store, not raised, so
    that Ray Train starts again only after what may pass, such as a worker's death.
    """
    if os.path.isdir(loop["cwd"]):  # Ray Train moves workers to a folder of its own
        os.chdir(loop["cwd"])
    try:
        loop["worker"](TrainingRun(loop["cpus"]), loop["settings"])
    except LaddError as error:
        context: StageContext = loop["context"]
        context.store.write(_verdict(context), str(error).encode())


def _verdict(context: StageContext) -> str:
    return f"{_SUFFIX}/{context.stage}/{context.key}/error.txt"


def _arrow_filesystem(context: StageContext) -> Any:
    import pyarrow.fs

    if context.store.is_local:
        Path(context.store.path(_SUFFIX, context.stage)).mkdir(parents=True, exist_ok=True)
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(context.store.filesystem))


def _reason(error: BaseException) -> str:
    """The sentence of the worker's LaddError where there is one, else the innermost cause in a
    line.
    """
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        if isinstance(current, LaddError):
            return str(current)
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
        queue += list(getattr(current, "worker_failures", {}).values())
    innermost = seen[-1]
    return (
        f"{type(innermost).__name__}: "
        f"{str(innermost).strip().splitlines()[-1] if str(innermost).strip() else ''}"
    )
