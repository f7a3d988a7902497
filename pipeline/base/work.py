"""What a stage has to do, counted from its configuration before it runs. Knows neither devices nor
prices: `pipeline/estimates.py` makes hours and money of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.base.training import TrainingPlan
    from schemas.resources import WorkerPool

Kind = Literal["sampling", "training", "compiled", "pixels", "text", "scores"]
"""What the operations are: passes of the transformer without gradients; with gradients, and with
compiled blocks; the autoencoder's convolutions; the text encoders; scores and feature spaces.
"""
Counts = Mapping[str, int]
"""The counts of a manifest, made or foreseen."""
Above = Mapping[str, Counts]
"""The counts of the stages above, by name. One that is not known is missing."""


@dataclass(frozen=True)
class Part:
    """Operations of one kind."""

    kind: Kind
    flops: float
    """Over all samples; a multiply-add is two."""
    calls: float = 0.0
    """How often a layer is called, over all micro-batches: each call takes a while to launch."""


@dataclass(frozen=True)
class Phase:
    """Work that is done at one time, divided in one way."""

    what: str
    parts: tuple[Part, ...] = ()
    core_seconds: float = 0.0
    """What a CPU core does of it while the device waits: files and their formats."""
    is_overlapped: bool = False
    """Whether a GPU does not wait, but goes on meanwhile."""
    by: WorkerPool | TrainingPlan | None = None
    """Who does it: workers of a pool, of a training, or None for the stage's own process."""
    pieces: int = 1
    """Shards: no more workers than that have something to do."""
    starts: bool = True
    """Whether workers start for it, and load the models."""


@dataclass(frozen=True)
class Work:
    """Everything that a stage does and makes."""

    samples: int
    unit: str
    """What `samples` counts, in the plural: pictures, updates."""
    phases: tuple[Phase, ...]
    counts: Counts = field(default_factory=dict)
    """The counts of its manifest that later stages need, as foreseen."""
    store_bytes: float = 0.0
    """Bytes that stay in the store, checkpoints included."""
    scratch_bytes: float = 0.0
    """Bytes in the temporary folder of each worker, at most."""
    device_bytes: int | None = None
    """Bytes on each worker's device, at most; None if nobody counts them."""
    model_bytes: int = 0
    """Bytes of weights that each worker loads when it starts."""
    remarks: tuple[str, ...] = ()
    """What the user should know before it starts, such as work that nothing will use."""

    def flops(self) -> float:
        return sum(part.flops for part in self._parts())

    def _parts(self) -> Iterator[Part]:
        for phase in self.phases:
            yield from phase.parts


def pieces_of(samples: float, size: int, buckets: int = 1) -> int:
    """Return in how many shards of `size` so many samples lie, of so many buckets."""
    return max(1, -(-round(samples) // size) + buckets - 1) if samples else 0
