"""What would run, and why: keys, states and changed fields, without Ray and without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.dag import STAGES, declare
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError, ServiceUnavailable
from schemas.manifest import Manifest
from schemas.suggest import did_you_mean


@dataclass(frozen=True)
class Selection:
    """The stages that a command selects."""

    until: str | None = None
    start: str | None = None
    """`--from`."""
    only: str | None = None
    force: frozenset[str] = frozenset()

    def stages(self, plan: list[PlannedStage]) -> list[PlannedStage]:
        """Return the selected stages of a plan, with the stages that they need."""
        if self.only is not None:
            return [stage for stage in plan if stage.name == self.only]
        if self.until is None:
            return plan
        needed = {self.until}
        for stage in reversed(plan):
            if stage.name in needed:
                needed |= set(stage.inputs)
        return [stage for stage in plan if stage.name in needed]


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan. `action` is done, run or skip."""

    name: str
    key: str
    inputs: tuple[str, ...]
    action: str
    why: str
    estimate: str
    manifest: Manifest | None = field(default=None, repr=False)


def rows_of(plan: list[PlannedStage]) -> dict[str, dict[str, Any]]:
    """One row per stage, by name, for the table at the end of a run: stage, action, key, counts and
    seconds, before anything runs.
    """
    return {
        stage.name: {
            "stage": stage.name,
            "action": stage.action,
            "key": stage.key,
            "counts": stage.manifest.counts if stage.manifest and stage.action == "done" else {},
            "seconds": 0.0,
        }
        for stage in plan
    }


class _PlanNode:
    """A stand-in for a Ray node, used for planning."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.upstream: tuple[_PlanNode, ...] = ()

    def bind(self, *upstream: _PlanNode) -> _PlanNode:
        self.upstream = upstream
        return self


def make_plan(
    config: PipelineConfig, store: ArtifactStore, selection: Selection
) -> list[PlannedStage]:
    """Plan every stage of the graph, in order. Raises ConfigError for an unknown stage,
    ArtifactError for a missing input.
    """
    nodes = declare(_PlanNode, config)
    for wanted in (selection.until, selection.start, selection.only, *selection.force):
        if wanted is not None and wanted not in nodes:
            raise ConfigError(f"unknown stage {wanted!r}{did_you_mean(wanted, nodes)}")
    keys: dict[str, str] = {}
    for name, node in nodes.items():
        keys[name] = STAGES[name].key(config, [keys[above.name] for above in node.upstream])
    found = {name: _found(store, name, keys[name], selection) for name in nodes}
    running = _running(nodes, found, selection)
    _require_inputs(nodes, found, running, selection)
    planned = []
    for name, node in nodes.items():
        inputs = tuple(above.name for above in node.upstream)
        if name in running:
            rerun = [above for above in inputs if above in running]
            action, why = (
                "run",
                "forced" if name in selection.force else _why(store, config, name, rerun),
            )
        else:
            action, why = ("done", "artifact exists") if found[name] else ("skip", "not needed")
        artifact = found[name]
        manifest = artifact.manifest if artifact else None
        planned.append(
            PlannedStage(
                name, keys[name], inputs, action, why, _estimate(name, config, manifest), manifest
            )
        )
    return planned


def _found(store: ArtifactStore, name: str, key: str, selection: Selection) -> Artifact | None:
    """Return the committed artifact of a stage. If it is made anew, its manifest may be damaged."""
    try:
        return store.find(name, key)
    except ServiceUnavailable:
        raise
    except ArtifactError:
        if name not in selection.force:
            raise
        return None


def _running(nodes: dict[str, _PlanNode], found: dict[str, Any], selection: Selection) -> set[str]:
    """Return the stages that must run: the wanted stages that are missing or forced, and their
    missing inputs.
    """
    fed = {above.name for node in nodes.values() for above in node.upstream}
    wanted = (
        {selection.only or selection.until}
        if selection.only or selection.until
        else set(nodes) - fed
    )
    running: set[str] = set()
    for name in reversed(nodes):
        if name in selection.force or (name in wanted and not found[name]):
            running.add(name)
            wanted |= {above.name for above in nodes[name].upstream}
    return running


def _require_inputs(
    nodes: dict[str, _PlanNode], found: dict[str, Any], running: set[str], selection: Selection
) -> None:
    """Raise ArtifactError if a stage that must run is before `--from` or not that of `--only`."""
    first = selection.only or selection.start
    if first is None:
        return
    allowed = (
        {first}
        if selection.only
        else {n for n in nodes if n == first or first in _upstream(nodes[n])}
    )
    for missing in (name for name in nodes if name in running - allowed and not found[name]):
        raise ArtifactError(
            f"{first} needs the artifact of {missing}, which is missing; `ladd-pipeline run "
            f"--until {missing}` makes it"
        )


def _upstream(node: _PlanNode) -> set[str]:
    direct = {above.name for above in node.upstream}
    return direct.union(*(_upstream(above) for above in node.upstream))


def _why(store: ArtifactStore, config: PipelineConfig, name: str, rerun: list[str]) -> str:
    """Say which identity fields differ from the nearest artifact of this stage, or that the stage
    has none.
    """
    nearest: list[str] | None = None
    for manifest in committed(store, name):
        changes = changed_fields(manifest.identity, STAGES[name].identity(config))
        if manifest.version != STAGES[name].version:
            changes.append(
                f"stage version changed from {manifest.version} to {STAGES[name].version}"
            )
        if nearest is None or len(changes) < len(nearest):
            nearest = changes
    if nearest is None:
        return "no artifact yet" + (f", needs {', '.join(rerun)}" if rerun else "")
    return "; ".join(nearest) or (
        "input changed: " + ", ".join(rerun) if rerun else "input changed"
    )


def committed(store: ArtifactStore, stage: str) -> list[Manifest]:
    """Return the manifests of all artifacts of a stage, newest first, without the damaged ones."""
    return survey(store, stage)[0]


def survey(store: ArtifactStore, stage: str) -> tuple[list[Manifest], list[str]]:
    """Return the manifests of all artifacts of a stage, newest first, and a sentence for each that
    cannot be used.
    """
    names = [
        n
        for n in store.list(f"artifacts/{stage}")
        if n.count("/") == 1 and n.endswith("/manifest.json")
    ]
    found, damaged = [], []
    for name in names:
        try:
            artifact = store.find(stage, name.split("/")[0])
        except ServiceUnavailable:
            raise
        except ArtifactError as error:
            damaged.append(str(error))
        else:
            found += [artifact.manifest] if artifact is not None else []
    return sorted(found, key=lambda m: m.started, reverse=True), damaged


def changed_fields(old: Any, new: Any, where: str = "") -> list[str]:
    """Return a sentence `a.b changed from x to y` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted({*old, *new}):
            changes += changed_fields(
                old.get(key), new.get(key), f"{where}.{key}" if where else key
            )
        return changes
    return [] if old == new else [f"{where} changed from {_show(old)} to {_show(new)}"]


def _show(value: Any) -> str:
    import json

    return json.dumps(value)


def _estimate(name: str, config: PipelineConfig, manifest: Manifest | None) -> str:
    """Say what a stage makes: as measured if its artifact exists, else as the stage estimates."""
    if manifest is None:
        expected: str = STAGES[name].module().estimate(config)
        return expected
    size = sum(file.size for file in manifest.files)
    return (
        f"{size / 1e6:.1f} MB, took {manifest.seconds:.0f} s, "
        f"{manifest.device_hours:.2f} device-hours"
    )
