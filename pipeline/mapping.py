"""One pool of workers, Ray Data actors where there are several, over the shards that are missing:
the only way in which stages map over shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.shards import finished_shards
from pipeline.stage import StageContext
from schemas.config import WorkerPool
from schemas.errors import LaddError, dump_error, load_error
from schemas.records import ShardStats


class ShardWorker(Protocol):
    """Built once in each worker (models are loaded in `__init__`), called once per shard."""

    def __call__(self, shard: str) -> ShardStats: ...


@dataclass(frozen=True)
class _Adapter:
    """What Ray Data calls with a batch of one row."""

    build: Callable[[], ShardWorker]

    def actor_type(self) -> type:
        build = self.build

        class ShardActor:
            def __init__(self) -> None:
                self._failure = ""
                try:
                    self._worker = build()
                except LaddError as error:
                    self._failure = dump_error(error)

            def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
                if self._failure:
                    return {"stats": [""], "error": [self._failure]}
                shard = str(batch["shard"][0])
                try:
                    return {"stats": [self._worker(shard).model_dump_json()], "error": [""]}
                except LaddError as error:
                    return {"stats": [""], "error": [dump_error(error)]}

        return ShardActor


def map_shards(
    context: StageContext,
    shards: list[str],
    build: Callable[[], ShardWorker],
    pool: WorkerPool,
    unit: str = "shards",
) -> dict[str, ShardStats]:
    """Make the shards that have no marker yet; returns the statistics of all, by shard name.

    `build` runs in each worker. A LaddError of a worker (damaged input, say) is raised here, after
    the shards under way are safe. Other failures are tried again `pool.retries` times by Ray. One
    worker without a GPU, on a cluster of one machine, is this process: an actor would take longer
    to start than most of its work.
    """
    done = {
        name: stats
        for name, stats in finished_shards(context.store, context.folder).items()
        if name in set(shards)
    }
    missing = [name for name in shards if name not in done]
    context.report(unit, len(done), len(shards))
    if not missing:
        return done
    cpus, gpus = _demand(pool)
    size = min(pool.workers or _pool_size(cpus, gpus), len(missing))
    alone = size == 1 and not gpus and _one_machine()
    made = map(build(), missing) if alone else _by_actors(missing, build, pool, size, gpus)
    for stats in made:
        done[stats.shard] = stats
        context.report(unit, len(done), len(shards))
    return done


def _by_actors(
    shards: list[str],
    build: Callable[[], ShardWorker],
    pool: WorkerPool,
    size: int,
    gpus: float,
) -> Iterator[ShardStats]:
    import ray

    data = ray.data.from_items(
        [{"shard": name} for name in shards], override_num_blocks=len(shards)
    )
    mapped = data.map_batches(
        _Adapter(build).actor_type(),
        batch_size=1,
        num_cpus=0 if gpus else pool.cpus_per_worker,
        num_gpus=gpus or None,
        compute=ray.data.ActorPoolStrategy(size=size),
        max_restarts=pool.retries,
        max_task_retries=pool.retries,
    )
    for row in mapped.iter_rows():
        if row["error"]:
            raise load_error(row["error"])
        yield ShardStats.model_validate_json(row["stats"])


def worker_devices(pool: WorkerPool) -> float:
    """GPUs, or CPU cores where there are none, that one worker holds: for device-hours."""
    cpus, gpus = _demand(pool)
    return gpus or cpus


def _demand(pool: WorkerPool) -> tuple[float, float]:
    import ray

    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    gpus = pool.gpus_per_worker if pool.gpus_per_worker is not None else float(has_gpus)
    return pool.cpus_per_worker, gpus


def _one_machine() -> bool:
    import ray

    return len([node for node in ray.nodes() if node["Alive"]]) == 1


def _pool_size(cpus: float, gpus: float) -> int:
    import ray

    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) // gpus if gpus else resources.get("CPU", 1) // cpus))
