"""The largest micro-batch with which a stage fits the memory of its device, by the estimate."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.base.work import Counts
from pipeline.estimates import work_of
from schemas.config import PipelineConfig


class Fit(NamedTuple):
    """A micro-batch that fits, and the bytes that a worker's device then needs."""

    micro_batch: int
    device_bytes: float


def largest_fit(
    config: PipelineConfig, stage: str, above: Mapping[str, Counts], room: float
) -> Fit | None:
    """Return the largest micro-batch, below the configured one, with which a worker of the stage
    needs no more than `room` bytes on its device. None if there is none, or it is not estimated.

    In trainings it divides a worker's share of the global batch, so that all rounds are alike.
    """
    wanted = getattr(config, stage)
    share = None
    if hasattr(wanted, "global_batch"):
        share = max(1, wanted.global_batch // wanted.workers)
    now = wanted.micro_batch or share
    if now is None:
        return None
    sizes = [size for size in range(1, now) if share is None or share % size == 0]

    def needed(size: int) -> float:
        smaller = wanted.model_copy(update={"micro_batch": size})
        work = work_of(stage, config.model_copy(update={stage: smaller}), above)
        return math.inf if work is None or work.device_bytes is None else work.device_bytes

    number = bisect_right(sizes, room, key=needed)  # more pictures never need less
    return Fit(sizes[number - 1], needed(sizes[number - 1])) if number else None
