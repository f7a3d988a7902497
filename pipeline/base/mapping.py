"""Maps a worker over the shards that are missing, in this process or in a pool of Ray Data actors.
All stages that map over shards use it. Several runs share the shards of one artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.base import metrics, retries
from pipeline.base.claims import Claims
from pipeline.base.failures import ShardFailures
from pipeline.base.foreign import innermost, loss
from pipeline.base.markers import Folding, forget, read_marker, scan
from pipeline.base.resources import Node, Request, cluster_nodes, pool_request
from pipeline.base.sharing import settled
from pipeline.base.stage import StageContext, enter, entered
from schemas.errors import (
    ConfigError,
    LaddError,
    ProcessLost,
    ServiceUnavailable,
    dump_error,
    load_error,
)
from schemas.records import ShardStats
from schemas.resources import Placement, WorkerPool

T = TypeVar("T")
Answer = ShardStats | str
"""The statistics of a shard, or the name of one that another run has claimed."""
_PAUSE_SECONDS = 10.0
"""Pause before the first retry; it doubles before each further one."""
_NODES_LOST = 20
"""How often an actor may be restarted: nodes come and go, but an actor that dies at every start
(out of memory, say) must not restart forever.
"""


class ShardWorker(Protocol):
    """Built once in each worker (models are loaded in `__init__`), called once per shard."""

    def __call__(self, shard: str) -> ShardStats: ...


@dataclass(frozen=True)
class _Persistent:
    """Builds a worker that pauses and retries when a store or a hub does not answer."""

    build: Callable[[], Callable[[str], Answer]]
    retries: int

    def __call__(self) -> Callable[[str], Answer]:
        worker = self._tried(self.build)
        return lambda shard: self._tried(lambda: worker(shard))

    def _tried(self, work: Callable[[], T]) -> T:
        for attempt in range(self.retries):
            try:
                return work()
            except ServiceUnavailable:
                retries.note()
                time.sleep(_PAUSE_SECONDS * 2**attempt)
        return work()


@dataclass(frozen=True)
class _Claiming:
    """Builds a worker that leaves a shard alone while another run has claimed it: then it answers
    with the shard's name.
    """

    build: Callable[[], ShardWorker]
    claims: Claims
    folder: str

    def __call__(self) -> Callable[[str], Answer]:
        worker = self.build()

        def claimed(shard: str) -> Answer:
            if not self.claims.take(shard):
                return shard
            try:
                made = read_marker(self.claims.store, self.folder, shard)
                return made or worker(shard)
            finally:
                self.claims.give_back(shard)

        return claimed


@dataclass(frozen=True)
class _Adapter:
    """Makes the actor class that Ray Data calls with batches of one row."""

    build: Callable[[], Callable[[str], Answer]]
    cwd: str

    def actor_type(self) -> type:
        build, cwd = self.build, self.cwd

        class ShardActor:
            def __init__(self) -> None:
                enter(cwd)
                self._failure = ""
                try:
                    self._worker = build()
                except LaddError as error:
                    self._failure = dump_error(error)

            def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
                before = retries.total()
                row: dict[str, Any] = {"stats": "", "claimed": "", "error": self._failure}
                if not self._failure:
                    row |= self._answer(str(batch["shard"][0]))
                row["retries"] = retries.total() - before
                return {name: [value] for name, value in row.items()}

            def _answer(self, shard: str) -> dict[str, str]:
                try:
                    answer = self._worker(shard)
                except LaddError as error:
                    return {"error": dump_error(error)}
                if isinstance(answer, str):
                    return {"claimed": answer}
                return {"stats": answer.model_dump_json()}

        return ShardActor


def map_shards(
    context: StageContext,
    shards: list[str],
    build: Callable[[], ShardWorker],
    pool: WorkerPool,
    unit: str = "shards",
) -> dict[str, ShardStats]:
    """Make the shards that have no marker yet; return the statistics of all shards by name.

    `build` runs in each worker. A shard is retried `pool.retries` times if a store does not answer,
    or if its worker or the worker's node is lost. Any other LaddError (damaged input, say) is
    raised here, after the shards in progress are saved. Samples that failed are counted; too
    many raise StageFailed.
    """
    store, folder, wanted = context.store, context.folder, set(shards)
    found = scan(store, folder)
    if found.stale & wanted:
        found = scan(store, folder)  # another run may have been finishing them
        if stale := found.stale & wanted:
            forget(store, folder, stale)
    done = {name: stats for name, stats in found.done.items() if name in wanted}
    missing = [name for name in shards if name not in done]
    context.report(unit, len(done), len(shards))
    failures = ShardFailures(context, len(shards))
    claims = context.crew.claims if context.crew else None
    folding = Folding(store, folder, claims.is_alone if claims else lambda: True)
    for stats in done.values():
        failures.add_shard(stats)
        if stats.shard in found.loose:
            folding.add(stats)
    making = _shared(context, claims, missing, build, pool) if claims else None
    for stats in making or _made(context, missing, build, pool):
        done[stats.shard] = stats
        metrics.count_shard(context.stage, stats)
        context.tell_shard(stats)
        context.report(unit, len(done), len(shards))
        failures.add_shard(stats)
        folding.add(stats)
    failures.tell()
    return done


def _shared(
    context: StageContext,
    claims: Claims,
    missing: list[str],
    build: Callable[[], ShardWorker],
    pool: WorkerPool,
) -> Iterator[ShardStats]:
    """Make the shards that no other run makes, and wait for those that others make."""
    if not missing:
        return
    if not claims.is_alone():  # so that runs seldom meet
        first = int(claims.token, 16) % len(missing)
        missing = missing[first:] + missing[:first]
    claiming = _Claiming(build, claims, context.folder)
    while missing:
        claimed: list[str] = []
        for answer in _made(context, missing, claiming, pool):
            if isinstance(answer, str):
                claimed.append(answer)
            else:
                yield answer
        missing = []
        for answer in settled(claims, context.folder, claimed):
            if isinstance(answer, str):
                missing.append(answer)
            else:
                yield answer


def _made(
    context: StageContext,
    missing: list[str],
    build: Callable[[], Callable[[str], Answer]],
    pool: WorkerPool,
) -> Iterator[Any]:
    """Make shards in a pool of actors. A single worker without a GPU and without a joined cluster
    runs in this process: an actor would take longer to start than most of its work.
    """
    if not missing:
        return
    nodes, joined = cluster_nodes(), context.config.ray.is_joined
    pool = pool if joined else pool.model_copy(update={"placement": Placement()})
    request = pool_request(pool, nodes)
    room = request.room(nodes)
    if joined and not request.gpus and pool.gpus_per_worker is None:
        context.warn(
            "the cluster has no GPU, so CPUs make the shards; gpus_per_worker=1 waits for one"
        )
    if joined and not room:
        context.warn(f"no node has room for a worker with {request} yet; waiting for one")
    build = _Persistent(build, pool.retries)
    first = min(pool.workers or max(1, room), len(missing))
    if not joined and first == 1 and not request.gpus:
        yield from map(build(), missing)
        return
    if not joined:
        require_room(context.stage, request, nodes)
    most = min(pool.workers or len(missing), len(missing)) if joined else first
    if joined and pool.min_workers is not None:
        first = min(pool.min_workers, most)
    yield from _by_actors(missing, build, pool, (first, most), request)


def require_room(stage: str, request: Request, nodes: Sequence[Node]) -> None:
    """Raise ConfigError unless a worker of a pool fits on this machine's nodes."""
    if not request.room(nodes):
        raise ConfigError(
            f"{stage}.pool: a worker with {request} does not fit on this machine; lower what it "
            "asks for, or join a cluster (ray.address)"
        )


def _by_actors(
    shards: list[str],
    build: Callable[[], Callable[[str], Answer]],
    pool: WorkerPool,
    sizes: tuple[int, int],
    request: Request,
) -> Iterator[Answer]:
    """Make shards in Ray Data actors. `sizes`: how many at first, and at most when nodes join."""
    import ray

    data = ray.data.from_items(
        [{"shard": name} for name in shards], override_num_blocks=len(shards)
    )
    mapped = data.map_batches(
        _Adapter(build, entered()).actor_type(),
        batch_size=1,
        **request.options(),
        compute=ray.data.ActorPoolStrategy(min_size=sizes[0], max_size=sizes[1]),
        max_restarts=_NODES_LOST,
        max_task_retries=pool.retries,
    )
    try:
        for row in mapped.iter_rows():
            retries.note(row["retries"])
            if row["error"]:
                raise load_error(row["error"])
            yield row["claimed"] or ShardStats.model_validate_json(row["stats"])
    except ray.exceptions.RayError as error:
        if lost := loss(innermost(error)) or loss(error):
            raise ProcessLost(f"a worker of the shards: {lost}") from error
        raise


def worker_devices(pool: WorkerPool) -> float:
    """Return the GPUs, or else the CPU cores, that one worker holds: for device-hours."""
    return pool_request(pool, cluster_nodes()).gpus or pool.cpus_per_worker
