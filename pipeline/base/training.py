"""Trains on Ray Train. A run is named after its training's key, so it resumes only itself.

Only this module uses Ray Train: a stage's worker function gets a `TrainingRun` and needs no Ray.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import retries
from pipeline.base.checkpoints import (
    Trained,
    arrow_filesystem,
    hold_training,
    is_all_there_is,
    keep_best,
    result_of,
    tidy_checkpoints,
)
from pipeline.base.course import Course, Keeping, Saved, Work, saved_in
from pipeline.base.foreign import innermost, loss, sentence
from pipeline.base.lease import Lease
from pipeline.base.resources import Node, Request, cluster_nodes, placed
from pipeline.base.scratch import scratch_prefix
from pipeline.base.stage import StageContext, enter, entered
from pipeline.base.store import json_object
from schemas.config import DistillConfig, DpoConfig
from schemas.errors import (
    ConfigError,
    LaddError,
    ProcessLost,
    ServiceUnavailable,
    StageFailed,
    dump_error,
    load_error,
)
from schemas.resources import Placement

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_RETRIES = "store_retries"
"""Among the metrics that the first worker reports: `retries.total()`."""


@dataclass(frozen=True)
class TrainingPlan:
    """The settings that Ray Train needs."""

    workers: int
    min_workers: int | None
    cpus_per_worker: float | None
    """None means the most with which all workers fit."""
    use_gpu: bool | None
    """None means GPUs if there are any."""
    retries: int
    keeping: Keeping
    micro_batch: int
    """The most samples in a forward pass."""
    placement: Placement

    @classmethod
    def of(cls, config: DistillConfig | DpoConfig) -> TrainingPlan:
        return cls(
            workers=config.workers,
            min_workers=config.min_workers,
            cpus_per_worker=config.cpus_per_worker,
            use_gpu=config.use_gpu,
            retries=config.retries,
            keeping=Keeping(config.checkpoints_kept, config.keep_every),
            micro_batch=config.micro_batch or -(-config.global_batch // config.workers),
            placement=config.placement,
        )


def worker_share(plan: TrainingPlan, nodes: Sequence[Node]) -> Request:
    """Return a worker's share of nodes.

    Unless the plan sets them: a GPU if any node has one, and the most CPUs with which all workers
    fit at once, or else as many workers as possible; 1 CPU if no worker fits yet.
    """
    gpu = plan.use_gpu if plan.use_gpu is not None else any(node.has_gpu for node in nodes)

    def share(cpus: float) -> Request:
        return placed(cpus, int(gpu), plan.placement)

    if plan.cpus_per_worker is not None:
        return share(plan.cpus_per_worker)
    bare = placed(0, int(gpu), plan.placement)
    fit = [node.resources for node in nodes if bare.room_on(node)]
    parts = {
        # A worker with a GPU leaves CPUs for the node's other GPUs.
        min(node.get("CPU", 0) // workers, node.get("CPU", 0) // (node["GPU"] if gpu else 1))
        for node in fit
        for workers in range(1, plan.workers + 1)
    }
    shares = [share(float(cpus)) for cpus in sorted(parts, reverse=True) if cpus >= 1]
    best = max(shares, key=lambda share: min(share.room(nodes), plan.workers), default=None)
    return best if best is not None and best.room(nodes) else share(1.0)


def worker_count(
    plan: TrainingPlan, share: Request, nodes: Sequence[Node], *, grows: bool
) -> int | tuple[int, int]:
    """Return the number of workers, or its bounds if the plan has a minimum and nodes may join. A
    cluster that never grows gets as many as fit.
    """
    least = plan.min_workers
    if least is None or least == plan.workers:
        return plan.workers
    if grows:
        return least, plan.workers
    return min(plan.workers, share.room(nodes))


def _own_share(context: StageContext, plan: TrainingPlan) -> Request:
    """Return the share of this training's workers.

    Raises ConfigError if the workers do not fit on a local Ray, which no node can join. A joined
    cluster may grow: then a warning says what the training waits for. Another says that CPUs train
    if the cluster has no GPU.
    """
    nodes = cluster_nodes()
    if not context.config.ray.is_joined:
        return require_room(context.stage, plan, nodes)
    share = worker_share(plan, nodes)
    if not share.gpus and plan.use_gpu is None:
        context.warn(
            f"the cluster has no GPU, so CPUs train; {context.stage}.use_gpu=true waits for one"
        )
    room, needed = share.room(nodes), plan.min_workers or plan.workers
    if room < needed:
        context.warn(
            f"the cluster has room for {room} of {needed} workers, each with {share}; waiting"
        )
    return share


def require_room(stage: str, plan: TrainingPlan, nodes: Sequence[Node]) -> Request:
    """Return a worker's share of this machine, where placement says nothing. Raises ConfigError
    unless all workers of a training fit on it.
    """
    share = worker_share(replace(plan, placement=Placement()), nodes)
    room, needed = share.room(nodes), plan.min_workers or plan.workers
    if room < needed:
        raise ConfigError(
            f"{stage}.workers: {needed} workers, each with {share}, do not fit on this machine, "
            f"which has room for {room}; lower {stage}.workers or cpus_per_worker, or join a "
            "cluster (ray.address)"
        )
    return share


class TrainingRun:
    """What a training worker gets: the stage's context, its rank and devices, the checkpoints to
    resume from, and a way to save the next one.
    """

    def __init__(
        self,
        context: StageContext,
        share: Request,
        lease: Lease,
        plan: TrainingPlan,
        course: Course,
    ) -> None:
        from ray import train

        self._train, self.context, self._lease = train, context, lease
        self._plan, self._course = plan, course
        worker = train.get_context()
        self.rank, self.world = worker.get_world_rank(), worker.get_world_size()
        self.cpus, self.gpus = share.cpus, int(share.gpus)
        self._devices = self.world * (self.gpus or self.cpus)
        self._started = time.monotonic()
        self._work = Work().on(0, plan.micro_batch)

    def checkpoint_folders(self) -> Generator[Path, None, None]:
        """Yield the folders of the checkpoints that the artifact can go on from, the best first.
        Each folder exists until the next one is requested; what follows goes on from the last.
        """
        there = saved_in(self.context.store, self.context.training_folder)
        # Ranks of one node share the copies of these objects.
        reported = [row.checkpoint for row in self._train.get_all_reported_checkpoints()]
        by_name = {Path(checkpoint.path).name: checkpoint for checkpoint in reported}
        for saved in self._course.starts(there, self.context.key):
            with by_name[saved.name].as_directory() as folder:
                before = Work.read(Path(folder))
                if before is None and self.rank == 0:
                    self.context.warn(
                        f"the work.json of {saved.name} cannot be read, so the device-hours of "
                        "earlier starts are not counted"
                    )
                self._work = (before or Work()).on(saved.step, self._plan.micro_batch)
                yield Path(folder)

    def save(
        self,
        metrics: dict[str, float],
        fill: Callable[[Path], None],
        step: int,
        *,
        in_tail: bool = False,
        best: int | None = None,
    ) -> None:
        """Save the checkpoint after update `step`: `fill` writes this rank's files into a folder,
        and the folders of all ranks are merged. Every rank must call this. Training continues
        during the upload. A checkpoint of the trunk serves other artifacts too, one `in_tail` only
        this one. That of update `best`, the best so far, stays.

        Raises Locked if another run has taken this training over.
        """
        saved = Saved(step, self.context.key if in_tail else "")
        if self.rank == 0:
            self._lease.check()
            if best is not None:
                keep_best(self.context, self._course, best)
            now = min(step, self._course.trunk)
            tidy_checkpoints(self.context, self._plan.keeping, now)
            # Ranks of a lost start may have left other files there.
            self.context.store.remove(f"{self.context.training_folder}/{saved.name}")
        folder = tempfile.mkdtemp(prefix=scratch_prefix("checkpoint"))
        try:
            fill(Path(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.rank == 0:
            hours = (time.monotonic() - self._started) / 3600 * self._devices
            replace(self._work, device_hours=self._work.device_hours + hours).write(Path(folder))
        self._train.report(
            metrics | {_RETRIES: retries.total()},
            checkpoint=self._train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=saved.name,
            checkpoint_upload_mode=self._train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )


@contextlib.contextmanager
def train_on_ray(
    context: StageContext,
    worker: Callable[[TrainingRun], None],
    plan: TrainingPlan,
    course: Course,
) -> Iterator[Trained]:
    """Run `worker(run)` on every worker, going on from the checkpoints of earlier runs of this
    training, whatever their lengths.

    Gives what the artifact is taken from. Raises the worker's LaddError, ConfigError for workers
    that will never fit, Locked if another run trains this training, ProcessLost if the training
    has lost its controller, and StageFailed for anything else that ends it.
    """
    if is_all_there_is(context, course):
        with result_of(context, course) as trained:
            yield trained
        return
    share = _own_share(context, plan)
    with hold_training(context, course) as lease:
        free_lost_places()
        trainer = _trainer(context, worker, plan, course, share, lease)
        try:
            result = trainer.fit()
        except Exception as error:
            raise _failure(context, lease) or _ended(context, error) from error
        if failure := _failure(context, lease):
            raise failure
        retries.note(int((result.metrics or {}).get(_RETRIES, 0)))
        lease.check()
        tidy_checkpoints(context, plan.keeping, course.trunk)
        with result_of(context, course) as trained:
            yield trained


def _trainer(
    context: StageContext,
    worker: Callable[[TrainingRun], None],
    plan: TrainingPlan,
    course: Course,
    share: Request,
    lease: Lease,
) -> TorchTrainer:
    from ray import train
    from ray.train.torch import TorchTrainer

    grows = context.config.ray.is_joined
    workers: Any = worker_count(plan, share, cluster_nodes(), grows=grows)
    return TorchTrainer(
        _entry,
        train_loop_config={
            "worker": worker,
            "share": share,
            "lease": lease,
            "plan": plan,
            "course": course,
            "context": context,
            "cwd": entered(),
        },
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(share.gpus),
            resources_per_worker=share.bundle(),
            label_selector=dict(share.labels) or None,
        ),
        run_config=train.RunConfig(
            name=context.training,
            storage_path=context.store.path(context.store.training_folder(context.stage)),
            storage_filesystem=arrow_filesystem(context),
            failure_config=train.FailureConfig(max_failures=plan.retries),
            checkpoint_config=train.CheckpointConfig(num_to_keep=None),  # see tidy_checkpoints
        ),
    )


def _entry(loop: dict[str, Any]) -> None:
    """Run one Ray Train worker.

    A LaddError would recur at every restart, so it is written to the store: workers of the same
    run that find one there return at once, and Ray Train restarts in vain at most once. With
    several workers the error is also raised, because the others wait for the failed worker and Ray
    Train must see it fail. A ServiceUnavailable may not recur, so it is only raised: Ray Train
    counts these retries.
    """
    context: StageContext = loop["context"]
    lease: Lease = loop["lease"]
    if _failure(context, lease) is not None:
        return
    enter(loop["cwd"])
    run = TrainingRun(context, loop["share"], lease, loop["plan"], loop["course"])
    try:
        loop["worker"](run)
    except ServiceUnavailable:
        raise
    except LaddError as error:
        verdict = {"run": lease.token, "error": dump_error(error)}
        context.store.write(_verdict(context), json.dumps(verdict).encode())
        if run.world > 1:
            raise


def free_lost_places() -> None:
    """Give back what this job's controllers that were lost hold for their workers. Ray does so for
    a controller that ends by itself; for one that is killed only where the dashboard runs, and the
    next start would wait for ever.
    """
    import ray
    from ray import PlacementGroupID
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    # Ray's public table does not say who made a group, nor whether he lives.
    for row in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(row)
        is_held = group.state != PlacementGroupTableData.REMOVED
        by_actor = any(byte != 0xFF for byte in group.creator_actor_id)  # not by a task or driver
        is_ours = group.creator_job_id.hex() == job and by_actor
        if is_held and is_ours and group.creator_actor_dead:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def _verdict(context: StageContext) -> str:
    return f"{context.training_folder}/error.json"


def _failure(context: StageContext, lease: Lease) -> LaddError | None:
    """Return the LaddError that ended a worker of this run, if any. What else the file may hold is
    another run's, or damaged.
    """
    content = context.store.read(_verdict(context))
    verdict = json_object(content) if content is not None else None
    if verdict is None or verdict.get("run") != lease.token:
        return None
    return load_error(verdict["error"])


def _ended(context: StageContext, error: Exception) -> LaddError:
    """Return the error of a training that Ray Train has ended, after all of its own retries if it
    was a worker that was lost.
    """
    from ray.train import WorkerGroupError

    first = innermost(error)
    if isinstance(first, LaddError):
        return StageFailed(str(first))
    lost = loss(first)
    if not lost or isinstance(error, WorkerGroupError):
        return StageFailed(f"{context.stage}: a worker of the training failed: {sentence(first)}")
    return ProcessLost(f"{context.stage}: the controller of the training was lost")
