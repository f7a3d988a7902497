"""What more workers gain where a sample's work is fixed: shards a second with 1, 2 and 4 workers,
the coordinator's share, and the costs of a shard that benchmarks/scale_simulation.py reckons with.

    python -m benchmarks.scaling [--out docs/scaling.json]

The workers are the pipeline's own Ray Data actors, with claims, files, markers and segments on
SeaweedFS; in place of a device they wait a fixed time for each sample, so that two cores have room
for four of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import s3fs

from pipeline.base.claims import Crew
from pipeline.base.mapping import map_shards
from pipeline.base.shards import ShardWriter
from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from pipeline.cluster import ray_cluster
from pipeline.config import load_config
from schemas.config import PipelineConfig
from schemas.records import ShardStats
from schemas.resources import WorkerPool
from tests.support.s3_servers import KEYS, environment_of, seaweed_server

_SAMPLES, _SHARD_BYTES = 16, 2 << 20
_COSTS = 60
"""Shards without work that tell what a shard costs beside it."""


@dataclass(frozen=True)
class Wait:
    """Builds a worker that waits in place of work, and writes a shard."""

    store: ArtifactStore
    folder: str
    seconds: float

    def __call__(self) -> Wait.Worker:
        return self.Worker(self)

    class Worker:
        def __init__(self, of: Wait) -> None:
            self.of, self.content = of, np.random.default_rng(0).bytes(_SHARD_BYTES)

        def __call__(self, shard: str) -> ShardStats:
            writer = ShardWriter(self.of.store, self.of.folder, shard)
            for _ in range(_SAMPLES):
                time.sleep(self.of.seconds)
            writer.file(".tar", self.content)
            return writer.commit({"ok": _SAMPLES})


def nothing(*_: object) -> None:
    """Progress and warnings are not shown."""


def run(
    config: PipelineConfig, shards: int, workers: int, seconds: float
) -> dict[str, float | list[float]]:
    """Map a worker over shards, and say when each was there, in seconds from the start."""
    key = f"{time.time_ns():016x}"[-16:]
    store = ArtifactStore(config.store)
    arrived: list[float] = []
    with Crew(store, "synthesize", key, "share", nothing) as crew:
        crew.join()
        context = StageContext(
            *("synthesize", key, "", config, store, {}, nothing, nothing, nothing),
            tell_shard=lambda stats: arrived.append(time.monotonic()),
            crew=crew,
        )
        names = [f"shards/64x64/{n:06d}" for n in range(shards)]
        pool = WorkerPool(workers=workers, cpus_per_worker=1, gpus_per_worker=0)
        with coordinating() as spent:
            started = time.monotonic()
            map_shards(context, names, Wait(store, context.folder, seconds), pool)
            ended = time.monotonic()
    return {
        **{"workers": workers, "shards": shards, "work": seconds * _SAMPLES},
        **{"seconds": ended - started, "coordinator_cpu": spent[0]},
        "arrived": [round(at - started, 3) for at in arrived],
    }


@contextmanager
def coordinating() -> Iterator[list[float]]:
    """The CPU seconds that this process takes: it is the coordinator, with Ray Data's executor."""
    before, spent = psutil.Process().cpu_times(), [0.0]
    yield spent
    after = psutil.Process().cpu_times()
    spent[0] = after.user + after.system - before.user - before.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.1, help="of work, for each sample")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray's own spelling)
    scratch = Path(tempfile.mkdtemp(prefix="w"))
    try:
        with seaweed_server(scratch) as address:
            os.environ |= environment_of(address, KEYS["writer"])
            s3fs.S3FileSystem(endpoint_url=address).mkdir("scaling")
            found = measured(options)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    show(found)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The costs of shards without work, then 1, 2 and 4 workers."""
    settings = ["store=s3://scaling/store", "ray.num_cpus=8"]
    config = load_config(None, "shapes-smoke", settings, environment={})
    with ray_cluster(config, nothing):
        run(config, 8, 2, 0.0)  # what Ray does once
        idle = [run(config, _COSTS, workers, 0.0) for workers in (1, 2)]
        rows = [run(config, options.shards, workers, options.seconds) for workers in (1, 2, 4)]
    return {"samples": _SAMPLES, "bytes": _SHARD_BYTES, "idle": idle, "runs": rows}


def rate(row: dict[str, Any]) -> float:
    """Shards a second, from the first to the last."""
    return float((len(row["arrived"]) - 1) / (row["arrived"][-1] - row["arrived"][0]))


def show(found: dict[str, Any]) -> None:
    """Print a table of the runs."""
    print("| workers | shards/s | of ideal | first shard after | coordinator's CPU a shard |")
    print("|---:|---:|---:|---:|---:|")
    for row in found["runs"]:
        steady, ideal = rate(row), row["workers"] / row["work"]
        print(
            f"| {row['workers']} | {steady:.3f} | {steady / ideal:.2f} | {row['arrived'][0]:.1f} s "
            f"| {row['coordinator_cpu'] / row['shards'] * 1000:.0f} ms |"
        )
    for row in found["idle"]:
        print(f"without work, {row['workers']} workers: {rate(row):.1f} shards/s")


if __name__ == "__main__":
    main()
