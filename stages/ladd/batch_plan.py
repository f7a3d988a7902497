"""Which samples each update uses: a pure function of the bucket sizes, the seed and the step.

Each update uses one bucket, the same on every rank. Each epoch visits a bucket's samples in a new
order. Knows only counts: a resume at a step number is exact, and a different number of workers
keeps the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Batching(Protocol):
    """The configuration fields that divide an update among workers and micro-batches."""

    @property
    def global_batch(self) -> int: ...
    @property
    def micro_batch(self) -> int | None: ...
    @property
    def workers(self) -> int: ...


class EmptyPlanError(ValueError):
    """No bucket holds enough samples for one global batch."""


@dataclass
class BatchPlan:
    """The order of samples in training. `sizes` maps bucket names to sample counts.

    Raises EmptyPlanError when no bucket fills one global batch.
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
        """Bucket of update `step`, counted from 0, and rows (global_batch,) int64 within it."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._enter(epoch)
        bucket, part = self._order[position]
        start = part * self.global_batch
        return bucket, self._rows[bucket][start : start + self.global_batch]

    def part(self, step: int, slots: range, more: int = 0) -> tuple[str, np.ndarray]:
        """Bucket and rows of `slots` of an update's batch and of the `more` slots after them,
        wrapping from the last slot to the first.
        """
        bucket, rows = self.batch(step)
        return bucket, rows.take(range(slots.start, slots.stop + more), mode="wrap")

    def _enter(self, epoch: int) -> None:
        import numpy as np

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
    """A rank's consecutive slots of the global batch, divided as evenly as possible."""
    return range(rank * global_batch // world, (rank + 1) * global_batch // world)


def mismatched_slots(global_batch: int, share: float) -> list[int]:
    """Slots whose data the heads also see as fake, with the prompt of the next slot.

    Their share of all fakes, the student's included, is as close to `share` as possible without
    using a slot twice. Evenly spaced.
    """
    if share == 0:
        return []
    count = min(global_batch, max(1, round(global_batch * share / (1 - share))))
    return [i * global_batch // count for i in range(count)]


def round_size(config: Batching) -> int:
    """Maximum number of samples in one forward pass: `micro_batch`, else a worker's whole share
    when all `workers` are present. Fewer workers need more rounds, because each worker's memory is
    the same.
    """
    return config.micro_batch or -(-config.global_batch // config.workers)


def accumulation_rounds(config: Batching, rank: int, world: int) -> list[slice]:
    """A rank's samples, split into accumulation rounds of `round_size`.

    All ranks have the same number of rounds, because they run in step. Where ranks have different
    numbers of samples, a round may hold one sample more.
    """
    batch = config.global_batch
    least, most = batch // world, -(-batch // world)
    rounds = min(-(-most // round_size(config)), least)
    count = len(slots_of(batch, rank, world))
    return [slice(i * count // rounds, (i + 1) * count // rounds) for i in range(rounds)]
