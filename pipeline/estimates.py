"""Hours, bytes and money of the stages that a plan would run, from the work that they count.

How long a piece of work takes comes from rates (`pipeline/rates.py`): those that earlier artifacts
measured on the same kind of device, else the device's peak and the share of it that we reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.base.resources import Node
from pipeline.base.training import TrainingPlan, worker_share
from pipeline.base.work import Counts, Part, Phase, Work
from pipeline.dag import STAGES
from pipeline.devices import Fleet, fleet_of, price_of
from pipeline.planning import PlannedStage
from schemas.config import PipelineConfig
from schemas.costs import CostsConfig
from schemas.manifest import Expected
from schemas.resources import Placement, WorkerPool

MODEL, PROBE = "model", "probe"
_TRAINING_START = 2.0
"""How many times a training takes as long to start as a worker of a pool."""


@dataclass(frozen=True)
class Rate:
    """How a stage's real times compare with the model's."""

    factor: float = 1.0
    """Of the device-seconds of work."""
    overhead: float | None = None
    """Seconds of the stage beyond its work; None means those of the model."""
    source: str = MODEL
    """Where it comes from: `model`, `probe`, or an artifact `stage/key`."""


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to take."""

    samples: int
    unit: str
    flops: float
    device_hours: float
    """Of work, as a manifest counts them."""
    seconds: float
    """From the stage's start to its end."""
    devices: float
    """That it holds at the most: GPUs, or cores."""
    workers: int
    """That work at the same time, at the most."""
    store_bytes: float
    scratch_bytes: float
    """On each worker's disk."""
    device_bytes: int | None
    """On each worker's device."""
    price: float | None
    """Of the devices while they are held; None if no price is known."""
    source: str

    @property
    def expected(self) -> Expected:
        return Expected(
            device_hours=round(self.device_hours, 6),
            seconds=round(self.seconds, 3),
            store_bytes=round(self.store_bytes),
            source=self.source,
        )


@dataclass(frozen=True)
class Outlook:
    """What a plan is expected to take."""

    fleet: Fleet
    stages: dict[str, Estimate | None]
    """Of the stages that would run; None where the work cannot be counted."""
    remarks: list[str] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    """What each stage has made, or is expected to make."""

    def expected(self) -> dict[str, Expected]:
        """What the manifests keep of it."""
        return {name: found.expected for name, found in self.stages.items() if found is not None}

    @property
    def known(self) -> list[Estimate]:
        return [estimate for estimate in self.stages.values() if estimate is not None]

    @property
    def unknown(self) -> list[str]:
        return [name for name, estimate in self.stages.items() if estimate is None]

    @property
    def seconds(self) -> float:
        return sum(estimate.seconds for estimate in self.known)

    @property
    def price(self) -> float | None:
        """Of all stages; None if one has none."""
        prices = [estimate.price for estimate in self.known]
        found = [price for price in prices if price is not None]
        return sum(found) if len(found) == len(self.stages) else None


def outlook(
    config: PipelineConfig, stages: list[PlannedStage], rates: Mapping[str, Rate]
) -> Outlook:
    """Estimate the stages that would run, in order: each is told what those above have made, or are
    expected to make.
    """
    fleet, counts = fleet_of(config), dict[str, Counts]()
    found: dict[str, Estimate | None] = {}
    remarks: list[str] = []
    for stage in stages:
        if stage.action != "run":
            if stage.manifest is not None:
                counts[stage.name] = stage.manifest.counts
            continue
        work = work_of(stage.name, config, counts)
        found[stage.name] = None
        if work is not None:
            counts[stage.name] = work.counts
            remarks += work.remarks
            rate = rates.get(stage.name, Rate())
            found[stage.name] = estimate(work, fleet, config.costs, rate)
    return Outlook(fleet, found, remarks, counts)


def work_of(stage: str, config: PipelineConfig, above: Mapping[str, Counts]) -> Work | None:
    """Return what a stage counts of its work; None if it does not, or cannot."""
    count = getattr(STAGES[stage].module(), "work", None)
    work: Work | None = count(config, above) if count is not None else None
    return work


def estimate(work: Work, fleet: Fleet, costs: CostsConfig, rate: Rate) -> Estimate | None:
    """Say what the work takes on these devices. None for devices of which neither peak nor rate is
    known.
    """
    if not fleet.known and rate.source == MODEL:
        return None
    spans = [span_of(phase, work, fleet, rate.factor) for phase in work.phases]
    seconds = sum(span.overhead + span.seconds for span in spans)
    if rate.overhead is not None:
        seconds = rate.overhead + sum(span.seconds for span in spans)
    held = sum((span.overhead + span.seconds) * span.devices for span in spans) / 3600
    price = price_of(costs, fleet.device.kind)
    return Estimate(
        samples=work.samples,
        unit=work.unit,
        flops=work.flops(),
        device_hours=sum(span.work for span in spans) / 3600,
        seconds=seconds,
        devices=max(span.devices for span in spans),
        workers=max(span.workers for span in spans),
        store_bytes=work.store_bytes,
        scratch_bytes=work.scratch_bytes,
        device_bytes=work.device_bytes,
        price=None if price is None else price * held,
        source=rate.source,
    )


@dataclass(frozen=True)
class Span:
    """The time of one phase."""

    phase: Phase
    work: float
    """Device-seconds of work."""
    seconds: float
    """Of the phase, without its overhead."""
    overhead: float
    """Seconds until its workers work."""
    workers: int
    devices: float
    """That all of its workers hold."""


def span_of(phase: Phase, work: Work, fleet: Fleet, factor: float) -> Span:
    """Say how long a phase takes, where real times are `factor` times those of the model."""
    device = fleet.device
    start = device.start + work.model_bytes / device.loading if phase.starts else 0.0
    if phase.by is None:
        return Span(phase, 0.0, phase.core_seconds, start / 2, 1, 0.0)
    workers, each = _workers(phase, fleet)
    on_devices = sum(_device_seconds(part, fleet, each) for part in phase.parts)
    on_cores = phase.core_seconds * each
    both = max if phase.is_overlapped and device.is_gpu else sum
    done = factor * both((on_devices, on_cores))
    if isinstance(phase.by, TrainingPlan):
        start *= _TRAINING_START
        return Span(phase, done, done / (workers * each), start, workers, workers * each)
    rounds = -(-phase.pieces // workers) * workers / max(1, phase.pieces)
    return Span(phase, done, done * rounds / (workers * each), start, workers, workers * each)


def _device_seconds(part: Part, fleet: Fleet, each: float) -> float:
    device = fleet.device
    return (
        part.flops / (device.flops * device.shares[part.kind]) + part.calls * device.launch * each
    )


def _workers(phase: Phase, fleet: Fleet) -> tuple[int, float]:
    """Return how many workers work on a phase, and the devices of each."""
    by = phase.by
    is_gpu = fleet.device.is_gpu
    if isinstance(by, TrainingPlan):
        node = Node({"CPU": float(fleet.cores), "GPU": float(fleet.count if is_gpu else 0)})
        share = worker_share(replace(by, placement=Placement()), [node])
        return by.workers, share.gpus or share.cpus
    assert isinstance(by, WorkerPool)
    gpus = float(is_gpu) if by.gpus_per_worker is None else by.gpus_per_worker
    each = gpus or by.cpus_per_worker
    count = by.workers or max(1, int((fleet.count if gpus else fleet.cores) // each))
    return max(1, min(count, phase.pieces)), each
