"""Estimated against measured, for every artifact of a store.

    python benchmarks/estimates.py STORE [--by STORE_OF_A_CALIBRATING_RUN]

Prints a Markdown table: device-seconds and seconds that each stage took; those by the FLOP model
for this machine, and their ratios; with --by also those by the rates of the newest artifacts of the
other store. Artifacts of before schema version 3 do not say which devices made them: they are taken
to be of this machine. What ran beside them is not known here: measure on a quiet machine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pipeline.base.lineage import committed
from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES
from pipeline.devices import Fleet, fleet_of
from pipeline.estimates import Estimate, Rate, estimate, work_of
from pipeline.rates import rate_of
from schemas.config import PipelineConfig
from schemas.costs import CostsConfig
from schemas.manifest import Manifest


@dataclass(frozen=True)
class Compared:
    """An artifact, and what was expected of it."""

    manifest: Manifest
    model: Estimate
    measured: Estimate | None

    def cells(self) -> list[str]:
        made = self.manifest
        found = [made.stage, f"{self.model.samples:,} {self.model.unit}"]
        found += [_seconds(made.device_hours * 3600), _seconds(made.seconds)]
        for expected in (self.model, self.measured):
            if expected is None:
                found += [""] * 4
                continue
            work, whole = expected.device_hours * 3600, expected.seconds
            found += [_seconds(work), _ratio(made.device_hours * 3600, work)]
            found += [_seconds(whole), _ratio(made.seconds, whole)]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--by", help="a store whose newest artifacts give the rates")
    wanted = parser.parse_args()
    names = ["device-s", "ratio", "seconds", "ratio"]
    columns = ["stage", "work", "device-s, measured", "seconds, measured"]
    columns += [f"model: {name}" for name in names]
    columns += [f"by the other store: {name}" for name in names] if wanted.by else []
    print(f"| {' | '.join(columns)} |")
    print("|---|---" + (len(columns) - 2) * "|---:" + "|")
    for row in compared(ArtifactStore(wanted.store), wanted.by):
        print(f"| {' | '.join(row.cells()[: len(columns)])} |")


def compared(store: ArtifactStore, by: str | None) -> list[Compared]:
    """Compare the newest artifact of each stage."""
    rows = []
    for stage in STAGES:
        found = committed(store, stage)
        if not found:
            continue
        manifest = found[0]
        config = PipelineConfig.model_validate(manifest.config)
        fleet = fleet_of(config)
        above = {ref.stage: store.find(ref.stage, ref.key) for ref in manifest.inputs}
        counts = {name: made.manifest.counts for name, made in above.items() if made is not None}
        work = work_of(stage, config, counts)
        if work is None:
            continue
        model = estimate(work, fleet, CostsConfig(), Rate())
        assert model is not None
        rate = None if by is None else _rate(ArtifactStore(by), stage, fleet)
        measured = estimate(work, fleet, CostsConfig(), rate) if rate is not None else None
        rows.append(Compared(manifest, model, measured))
    return rows


def _rate(store: ArtifactStore, stage: str, fleet: Fleet) -> Rate | None:
    found = committed(store, stage)
    return rate_of(found[0], store, fleet) if found else None


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _ratio(fact: float, expected: float) -> str:
    return f"{fact / expected:.2f}" if expected else ""


if __name__ == "__main__":
    main()
