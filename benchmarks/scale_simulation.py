"""Simulates a stage that makes shards, event by event: workers that start, claim, work and write, a
bucket that they share, and the coordinator that takes each shard in.

    python benchmarks/scale_simulation.py docs/scaling.json [--out docs/scale-simulation.json]

First it simulates the runs that benchmarks/scaling.py has measured, with the costs of a shard that
were measured without work, and ends with an error if one is off by more than 15 %. Then it goes on
to many workers, and says what each part does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simpy

LIMIT = 0.15
_IN_FLIGHT = 2
"""Shards that Ray Data sends to an actor before the first is done."""


@dataclass(frozen=True)
class Costs:
    """Seconds. What a shard costs beside its work, and how workers start."""

    first: float
    """From the start to the first worker's readiness."""
    further: float
    """For each further worker that starts on the same machine."""
    shard: float
    """The worker's requests for a shard: claim, files, marker, claim."""
    coordinator: float
    """The coordinator's work for a shard, during which it takes in no other."""


@dataclass(frozen=True)
class Stage:
    """What is to be made."""

    shards: int
    work: float
    """Seconds that a worker works on a shard."""
    spread: float = 0.0
    """Standard deviation of the work's time over its mean: buckets differ."""
    bytes: float = 0.0
    bandwidth: float = float("inf")
    """Bytes a second that the bucket takes from all workers together."""
    lost_every: float = float("inf")
    """Seconds after which a worker is lost, on average; it starts again and redoes its shard."""


@dataclass
class Outcome:
    """What a simulated stage took, in seconds, and how busy its parts were, as shares."""

    seconds: float
    workers: float
    coordinator: float
    bucket: float
    redone: int


def simulate(stage: Stage, workers: int, costs: Costs, *, together: int, seed: int = 0) -> Outcome:
    """Make the stage's shards with so many workers, `together` of them on one machine."""
    return _Simulation(stage, workers, costs, together, seed).run()


class _Simulation:
    def __init__(self, stage: Stage, workers: int, costs: Costs, together: int, seed: int) -> None:
        self.stage, self.costs, self.workers = stage, costs, workers
        self.random = np.random.default_rng(seed)
        self.now = simpy.Environment()
        self.coordinator = simpy.Resource(self.now)
        self.bucket = simpy.Resource(self.now)
        self.waiting = deque(range(stage.shards))
        self.busy = {"workers": 0.0, "coordinator": 0.0, "bucket": 0.0}
        self.redone = 0
        self.together = together

    def run(self) -> Outcome:
        for number in range(self.workers):
            self.now.process(self._actor(number % self.together))
        self.now.run()
        seconds = self.now.now
        return Outcome(
            seconds=seconds,
            workers=self.busy["workers"] / seconds / self.workers,
            coordinator=self.busy["coordinator"] / seconds,
            bucket=self.busy["bucket"] / seconds,
            redone=self.redone,
        )

    def _actor(self, place: int) -> Iterator[simpy.Event]:
        """Takes shards, two ahead, while there are any; `place` is its number on its machine."""
        yield self.now.timeout(self.costs.first + place * self.costs.further)
        mine: deque[int] = deque()
        life = self._life()
        while self.waiting or mine:
            while self.waiting and len(mine) < _IN_FLIGHT:
                mine.append(self.waiting.popleft())
            work = self._work()
            if self.now.now + work > life:  # lost in the middle, and started again
                yield self.now.timeout(max(life - self.now.now, 0) + self.costs.first)
                self.redone += 1
                life = self.now.now + self._life()
                continue
            mine.popleft()
            yield self.now.timeout(work + self.costs.shard)
            self.busy["workers"] += work
            yield from self._use("bucket", self.bucket, self.stage.bytes / self.stage.bandwidth)
            taken_in = self._use("coordinator", self.coordinator, self.costs.coordinator)
            self.now.process(taken_in)

    def _work(self) -> float:
        if not self.stage.spread:
            return self.stage.work
        factor = self.random.gamma(self.stage.spread**-2, self.stage.spread**2)
        return float(self.stage.work * factor)

    def _life(self) -> float:
        every = self.stage.lost_every
        return float(self.random.exponential(every)) if every < float("inf") else every

    def _use(self, name: str, resource: simpy.Resource, seconds: float) -> Iterator[simpy.Event]:
        if seconds > 0:
            with resource.request() as turn:
                yield turn
                yield self.now.timeout(seconds)
                self.busy[name] += seconds


def costs_of(found: dict[str, Any]) -> Costs:
    """The costs, from shards that one worker, and two, have made without work."""
    one, two = found["idle"]
    shard = float(np.median(np.diff(one["arrived"])))
    first = one["arrived"][0] - shard
    # Two that start at once on one machine hold each other up.
    further = max(two["arrived"][0] - one["arrived"][0], 0.0)
    return Costs(first, further, shard, one["coordinator_cpu"] / one["shards"])


def check(found: dict[str, Any], costs: Costs) -> list[dict[str, float]]:
    """Each measured run beside its simulation."""
    rows = []
    for run in found["runs"]:
        stage = Stage(run["shards"], run["work"])
        simulated = simulate(stage, run["workers"], costs, together=run["workers"]).seconds
        rows.append(
            {
                "workers": run["workers"],
                "measured": run["seconds"],
                "simulated": simulated,
                "ratio": simulated / run["seconds"],
            }
        )
    return rows


def outlook(
    costs: Costs, options: argparse.Namespace, workers: Sequence[int]
) -> list[dict[str, Any]]:
    """The stage that the options describe, with more and more workers."""
    stage = Stage(
        shards=-(-options.samples // options.shard_samples),
        work=options.shard_samples * options.seconds,
        spread=options.spread,
        bytes=options.shard_samples * options.sample_bytes,
        bandwidth=options.bandwidth,
        lost_every=options.lost_hours * 3600,
    )
    far = replace(costs, first=options.start, shard=costs.shard + options.latency)
    rows = []
    for number in workers:
        made = simulate(stage, number, far, together=1)
        ideal = options.samples * options.seconds / number
        rows.append(
            {
                "workers": number,
                "hours": made.seconds / 3600,
                "of ideal": ideal / made.seconds,
                "coordinator": made.coordinator,
                "bucket": made.bucket,
                "redone": made.redone,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="what scaling.py has written")
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=2.94, help="of one device for a sample")
    parser.add_argument("--shard-samples", type=int, default=128)
    parser.add_argument("--sample-bytes", type=float, default=1.2e6)
    parser.add_argument("--spread", type=float, default=0.05)
    parser.add_argument(
        "--bandwidth", type=float, default=1e9, help="of the bucket, bytes a second"
    )
    parser.add_argument("--latency", type=float, default=0.5, help="of a far bucket, for a shard")
    parser.add_argument("--start", type=float, default=120.0, help="seconds to load the models")
    parser.add_argument("--lost-hours", type=float, default=24.0, help="between losses of a worker")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = json.loads(options.measured.read_text())
    costs = costs_of(found)
    print(
        f"a shard costs its worker {costs.shard * 1000:.0f} ms and the coordinator "
        f"{costs.coordinator * 1000:.1f} ms beside its work"
    )
    rows = check(found, costs)
    print("\n| workers | measured | simulated | ratio |\n|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['workers']} | {row['measured']:.1f} s | {row['simulated']:.1f} s "
            f"| {row['ratio']:.2f} |"
        )
    if any(abs(row["ratio"] - 1) > LIMIT for row in rows):
        sys.exit(
            f"the simulation is off by more than {LIMIT:.0%}: it says nothing about more workers"
        )
    far = outlook(costs, options, options.workers)
    print(
        f"\n{options.samples:,} samples of {options.seconds:g} s in shards of "
        f"{options.shard_samples}:"
    )
    print("\n| workers | hours | of ideal | coordinator busy | bucket busy | shards redone |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in far:
        print(
            f"| {row['workers']:,} | {row['hours']:.1f} | {row['of ideal']:.3f} "
            f"| {row['coordinator']:.1%} | {row['bucket']:.0%} | {row['redone']:,} |"
        )
    if options.out:
        content = {"costs": asdict(costs), "check": rows, "far": far}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
