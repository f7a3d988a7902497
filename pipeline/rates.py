"""Rates of work, from artifacts that were made before on the same kind of device."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict

from pydantic import ValidationError

from pipeline.base.lineage import committed
from pipeline.base.stage import digest_of
from pipeline.base.store import ArtifactStore, json_object, to_json
from pipeline.base.training import TrainingPlan
from pipeline.base.work import Counts
from pipeline.devices import Fleet, fleet_of
from pipeline.estimates import Outlook, Rate, outlook, span_of, work_of
from pipeline.planning import PlannedStage
from schemas.config import PipelineConfig
from schemas.errors import LaddError
from schemas.manifest import Manifest

_SIGNALS = "signals.jsonl"
"""In the artifact of a training: the speed of its updates, by the time of measuring."""
_OF_TEACHER = ("family", "model", "dtype", "use_t5")
"""Fields of the teacher that decide how fast it is."""
_TRIED = 3
"""Artifacts of a stage that are looked at, the newest first."""


def look_ahead(
    config: PipelineConfig, store: ArtifactStore, stages: list[PlannedStage]
) -> Outlook | None:
    """Estimate the stages that would run, by what the store's artifacts have measured. None if
    nothing would.
    """
    if all(stage.action != "run" for stage in stages):
        return None
    return outlook(config, stages, measured_rates(config, store, stages))


def measured_rates(
    config: PipelineConfig, store: ArtifactStore, stages: list[PlannedStage]
) -> dict[str, Rate]:
    """Return the rates of the stages that would run, as far as the store's artifacts have measured
    them: with the same teacher, on the same kind of device.
    """
    fleet = fleet_of(config)
    rates = _kept(config, store, fleet)
    for name in (stage.name for stage in stages if stage.action == "run"):
        alike = [m for m in committed(store, name) if _is_alike(m, config, fleet)]
        for manifest in alike[:_TRIED]:
            rate = rate_of(manifest, store, fleet)
            if rate is not None:
                rates[name] = rate
                break
    return rates


def rate_of(
    manifest: Manifest, store: ArtifactStore, fleet: Fleet, source: str = ""
) -> Rate | None:
    """Compare what an artifact took on the kind of device of `fleet` with what the model says of
    it. None where that cannot be said, because its inputs are gone, say.
    """
    try:
        config = PipelineConfig.model_validate(manifest.config)
        above = _counts_above(manifest, store)
    except (ValidationError, LaddError):
        return None
    work = work_of(manifest.stage, config, above)
    count = round(manifest.devices.count) if manifest.devices else fleet.count
    cores = fleet.cores if fleet.device.is_gpu else count
    there = Fleet(fleet.device, max(1, count), cores, fleet.is_here, fleet.known)
    if work is None:
        return None
    spans = [span_of(phase, work, there, 1.0) for phase in work.phases]
    speed = _speed(manifest, store)
    updates = [span for span in spans if isinstance(span.phase.by, TrainingPlan)][:1]
    factor = 1.0
    if speed is not None and updates:
        # A short training takes longer to start than to train: its device-hours tell little.
        factor = work.samples / speed * updates[0].devices / updates[0].work
    elif any(span.work for span in spans):
        factor = manifest.device_hours * 3600 / sum(span.work for span in spans)
    if factor <= 0:
        return None
    made = min(1.0, manifest.counts.get("updates", 0) / max(1, work.counts.get("updates", 0)))
    worked = sum(
        span_of(span.phase, work, there, factor).seconds * (made if span in updates else 1.0)
        for span in spans
    )
    beyond = manifest.seconds - worked
    source = source or f"{manifest.stage}/{manifest.key}"
    # One that was resumed took longer than its last run did.
    return Rate(factor, beyond if beyond > 0 else None, source)


def keep_rates(
    config: PipelineConfig, store: ArtifactStore, fleet: Fleet, rates: Mapping[str, Rate]
) -> None:
    """Keep what a probe has measured, for this kind of device and this teacher. Artifacts that are
    made later outrank it.
    """
    content = {
        name: asdict(rate) for name, rate in {**_kept(config, store, fleet), **rates}.items()
    }
    store.write(_place(config, fleet), to_json(content))


def _kept(config: PipelineConfig, store: ArtifactStore, fleet: Fleet) -> dict[str, Rate]:
    """Return the rates of a probe; none from a file that is damaged."""
    content = json_object(store.read(_place(config, fleet)) or b"") or {}
    try:
        return {name: Rate(**row) for name, row in content.items()}
    except TypeError:
        return {}


def _place(config: PipelineConfig, fleet: Fleet) -> str:
    depends = [fleet.device.kind, *(getattr(config.teacher, name) for name in _OF_TEACHER)]
    return f"rates/probe-{digest_of(depends)[:16]}.json"


def _is_alike(manifest: Manifest, config: PipelineConfig, fleet: Fleet) -> bool:
    if manifest.devices is None or manifest.devices.kind != fleet.device.kind:
        return False
    teacher = manifest.config.get("teacher", {})
    return all(teacher.get(name) == getattr(config.teacher, name) for name in _OF_TEACHER)


def _counts_above(manifest: Manifest, store: ArtifactStore) -> Mapping[str, Counts]:
    """Return the counts of an artifact's inputs."""
    found = {ref.stage: store.find(ref.stage, ref.key) for ref in manifest.inputs}
    return {name: made.manifest.counts for name, made in found.items() if made is not None}


def _speed(manifest: Manifest, store: ArtifactStore) -> float | None:
    """Return the samples a second of a training's updates, without what lies between them; None if
    it has told none.
    """
    content = store.read(f"{store.folder(manifest.stage, manifest.key)}/{_SIGNALS}")
    speeds = []
    for line in (content or b"").splitlines():
        row = json_object(line) or {}
        speed = row.get("samples_per_second")
        speeds += [float(speed)] if isinstance(speed, int | float) and speed > 0 else []
    return statistics.median(speeds) if speeds else None
