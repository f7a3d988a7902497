"""The engine without Ray: stages, shards and trainings in this process, one after another.

python -m tests.support.without_ray ARGUMENTS OF ladd-pipeline

With LIVES in the environment the process kills itself with SIGKILL after so many checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pipeline import cli, executor, stage_task
from pipeline.base import mapping
from pipeline.base.resources import Node
from pipeline.budget import Budget
from pipeline.devices import cpu_kind
from pipeline.observe import Observer
from pipeline.stage_task import Job, run_stage
from schemas.errors import LaddError
from schemas.manifest import Devices, Expected
from stages import distill, dpo
from tests.support.training import training_here


def map_in_this_process(patch: pytest.MonkeyPatch) -> None:
    """`map_shards` as on a laptop of one core."""
    patch.setattr(mapping, "cluster_nodes", lambda: [Node({"CPU": 1.0})])


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Everything that `execute` starts."""
    map_in_this_process(patch)
    patch.setattr(executor, "ray_cluster", lambda config, warn: contextlib.nullcontext())
    patch.setattr(executor, "_walk", _walk)
    patch.setattr(stage_task, "cluster_devices", _this_core)
    lives = int(os.environ.get("LIVES", 0))
    for stage in (distill, dpo):
        patch.setattr(stage, "train_on_ray", training_here(lives, die=_kill_itself))


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _this_core(expected: Expected | None) -> Devices:
    return Devices(kind=cpu_kind(), count=1, expected=expected)


def _walk(job: Job, observer: Observer, budget: Budget) -> Iterator[dict[str, Any]]:
    """Stages in the order of the plan; progress and warnings go straight to the observer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_task, "Reporter", lambda _, stage: partial(observer.progress, stage))
        patch.setattr(
            stage_task,
            "ShardTeller",
            lambda _, stage: (
                lambda stats: observer.shard(stage, stats.shard, stats.seconds, stats.samples)
            ),
        )
        patch.setattr(
            stage_task,
            "Speaker",
            lambda _, stage, kind: lambda text: observer.event(kind, stage=stage, text=text),
        )
        for name in job.inputs:
            if name in job.running:
                observer.event("stage", name=name, key=job.keys[name], what="queued")
                observer.started(name, job.keys[name])
                budget.charge([name])
                try:
                    yield run_stage(name, job, None)
                except LaddError as error:
                    observer.record("failed", stage=name, error=str(error))
                    raise


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched:
        without_ray(patched)
        cli.main()
