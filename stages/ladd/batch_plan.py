"""Which samples each update sees: a pure function of the data's sizes, the seed and the step.

One bucket an update, the same on every rank; an epoch visits each bucket's samples in a new order.
Knows only counts: resume is exact by step number, and a changed number of workers keeps the global
batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Batching(Protocol):
    """How a trainer's configuration shares out an update."""

    @property
    def global_batch(self) -> int: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def workers(self) -> int: ...


class EmptyPlanError(ValueError):
    """No bucket fills a batch."""


@dataclass
class BatchPlan:
    """`sizes` maps bucket names to sample counts. Raises EmptyPlanError when no bucket fills one
    global batch.
    """

    sizes: dict[str, int]
    global_batch: int
    seed: int
    _epoch: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        self.buckets = sorted(
            name for name, size in self.sizes.items() if size >= self.global_batch
        )
        self.short_buckets = sorted(
            name for name, size in self.sizes.items() if size < self.global_batch
        )
        if not self.buckets:
            held = (
                ", ".join(f"{name}: {size}" for name, size in sorted(self.sizes.items()))
                or "no samples"
            )
            raise EmptyPlanError(
                f"distill.global_batch is {self.global_batch}, but no bucket holds that many "
                f"samples ({held}); "
                "lower it or make more pictures"
            )
        self.batches_per_epoch = sum(self.sizes[name] // self.global_batch for name in self.buckets)

    def batch(self, step: int) -> tuple[str, np.ndarray]:
        """Bucket and rows (global_batch,) int64 within it, of update `step` counted from 0."""
        epoch, place = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._enter(epoch)
        bucket, part = self._order[place]
        start = part * self.global_batch
        return bucket, self._rows[bucket][start : start + self.global_batch]

    def part(self, step: int, slots: range, more: int = 0) -> tuple[str, np.ndarray]:
        """Bucket and rows of some `slots` of a batch, and of as many `more` behind them; behind
        the last slot comes the first.
        """
        bucket, rows = self.batch(step)
        return bucket, rows.take(range(slots.start, slots.stop + more), mode="wrap")

    def _enter(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        self._rows = {name: rng.permutation(self.sizes[name]) for name in self.buckets}
        order = [
            (name, part)
            for name in self.buckets
            for part in range(self.sizes[name] // self.global_batch)
        ]
        self._order = [order[i] for i in rng.permutation(len(order))]
        self._epoch = epoch


def slots_of(global_batch: int, rank: int, world: int) -> range:
    """Which samples of the global batch a rank takes: neighbours, as evenly as can be."""
    return range(rank * global_batch // world, (rank + 1) * global_batch // world)


def mismatched_slots(global_batch: int, share: float) -> list[int]:
    """Slots whose data the heads also see as fake, under the prompt of the next slot: `share` of
    all fakes, beside the student's, as nearly as can be, and no slot twice. Evenly spread.
    """
    if share == 0:
        return []
    count = min(global_batch, max(1, round(global_batch * share / (1 - share))))
    return [i * global_batch // count for i in range(count)]


def round_size(config: Batching) -> int:
    """Samples in one forward pass, at most: `micro_batch`, or else the whole share of a worker when
    all of them are there. Fewer workers take more rounds, for their memory is the same.
    """
    return config.micro_batch or -(-config.global_batch // config.workers)


def accumulation_rounds(config: Batching, rank: int, world: int) -> list[slice]:
    """A rank's samples in accumulation rounds of `round_size`.

    All ranks have as many rounds, for they work together. Where the ranks' samples differ in
    number, a round may hold one sample more.
    """
    batch = config.global_batch
    least, most = batch // world, -(-batch // world)
    rounds = min(-(-most // round_size(config)), least)
    count = len(slots_of(batch, rank, world))
    return [slice(i * count // rounds, (i + 1) * count // rounds) for i in range(rounds)]
