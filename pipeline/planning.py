"""What would run, and why: keys, states and changed fields, without Ray and without torch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.base.course import Course, number_list, saved_in
from pipeline.base.fingerprints import Look, Notice, open_digests
from pipeline.base.lineage import committed
from pipeline.base.pins import read_pins
from pipeline.base.store import ArtifactStore
from pipeline.dag import STAGES, declare, left_out
from pipeline.outside import Asked, Keyed, Seen, changes_outside, find_keyed, record
from pipeline.student_start import start_of
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, ConfigError
from schemas.manifest import Manifest
from schemas.suggest import did_you_mean

_MOST_STEPS = 10**9
"""More than any training has."""


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
    training: str = ""
    """The key of its training, if it trains."""
    outside: Seen = field(default_factory=dict, repr=False)
    """Fingerprints of what it reads outside the store."""
    manifest: Manifest | None = field(default=None, repr=False)
    accepted: str = ""
    """Why its artifact was declared good for this configuration, if it was not made for it."""


def used_by(
    config: PipelineConfig, store: ArtifactStore, plan: list[PlannedStage]
) -> set[tuple[str, str]]:
    """Return stage and key of all artifacts and trainings that a plan needs: its own, what accepted
    artifacts were made from, and the student from which the training starts.
    """
    used = {(stage.name, key) for stage in plan for key in (stage.key, stage.training) if key}
    if (start := start_of(config)) is not None:
        used.add(start)
    above = [
        ref for stage in plan if stage.accepted and stage.manifest for ref in stage.manifest.inputs
    ]
    while above:
        ref = above.pop()
        if (ref.stage, ref.key) not in used:
            used.add((ref.stage, ref.key))
            found = store.find(ref.stage, ref.key)
            above += found.manifest.inputs if found else []
    return used


def rows_of(plan: list[PlannedStage]) -> dict[str, dict[str, Any]]:
    """One row per stage, by name, for the table at the end of a run: stage, action, key, counts,
    seconds and expected seconds, before anything runs.
    """
    return {
        stage.name: {
            "stage": stage.name,
            "action": stage.action,
            "key": stage.key,
            "counts": stage.manifest.counts if stage.manifest and stage.action == "done" else {},
            "seconds": 0.0,
            "expected": None,
        }
        for stage in plan
    }


def warnings_of(config: PipelineConfig, plan: list[PlannedStage]) -> list[str]:
    """Return what the `warnings` of the stages that will run say of the configuration."""
    return [
        warning
        for stage in plan
        if stage.action == "run"
        and (warnings := getattr(STAGES[stage.name].module(), "warnings", None))
        for warning in warnings(config)
    ]


class _PlanNode:
    """A stand-in for a Ray node, used for planning."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.upstream: tuple[_PlanNode, ...] = ()

    def bind(self, *upstream: _PlanNode) -> _PlanNode:
        self.upstream = upstream
        return self


def make_plan(
    config: PipelineConfig,
    store: ArtifactStore,
    selection: Selection,
    notice: Notice = lambda text: None,
) -> list[PlannedStage]:
    """Plan every stage of the graph, in order. Raises ConfigError for an unknown stage,
    ArtifactError for a missing input. `notice` is told of work that takes a while.
    """
    nodes = _nodes(config, selection)
    needed = _needed(nodes, selection)
    pins, digests = read_pins(config, store), open_digests(notice)
    look = Look(digests)
    keyed: dict[str, Keyed] = {}

    @cache
    def others(stage: str) -> list[Manifest]:
        return committed(store, stage)

    for name, node in nodes.items():
        above = [keyed[upstream.name].key for upstream in node.upstream]
        asked = Asked(STAGES[name], config, pins, store, above, others)
        keyed[name] = find_keyed(asked, look, forced=name in selection.force, needed=name in needed)
    digests.save()
    found = {name: keyed[name].artifact for name in nodes}
    running = _running(nodes, found, selection, left_out(config))
    _require_inputs(nodes, found, running, selection)
    planned = []
    for name, node in nodes.items():
        inputs = tuple(above.name for above in node.upstream)
        above_keys = [keyed[above].key for above in inputs]
        training = STAGES[name].training_key(config, above_keys, keyed[name].seen)
        if name in running:
            rerun = [above for above in inputs if above in running]
            action, why = "run", "forced"
            if name not in selection.force:
                why = _why(others(name), config, name, keyed[name], rerun)
                why += _start(store, config, name, keyed[name].key, training)
        else:
            action, why = ("done", "artifact exists") if found[name] else ("skip", "not needed")
        if keyed[name].note and action != "skip":
            why += f" ({keyed[name].note})"
        artifact = found[name]
        planned.append(
            PlannedStage(
                name=name,
                key=keyed[name].key,
                inputs=inputs,
                action=action,
                why=why,
                estimate=_estimate(name, config, artifact.manifest if artifact else None),
                training=training,
                outside=keyed[name].seen,
                manifest=artifact.manifest if artifact else None,
                accepted=artifact.accepted if artifact else "",
            )
        )
    return planned


def stages_at_most(config: PipelineConfig, selection: Selection) -> list[str]:
    """Return the stages that would run on an empty store, in order: without looking at one. Raises
    ConfigError for an unknown stage.
    """
    nodes = _nodes(config, selection)
    running = _running(nodes, dict.fromkeys(nodes), selection, left_out(config))
    return [name for name in nodes if name in running & _allowed(nodes, selection)]


def take_over(store: ArtifactStore, plan: list[PlannedStage]) -> None:
    """Record what lies outside now for artifacts that were made before contents entered the keys:
    from here on a change is noticed.
    """
    for stage in plan:
        found = stage.manifest
        if stage.action == "done" and found is not None and stage.outside and not found.outside:
            record(store, stage.name, stage.key, stage.outside)


def _nodes(config: PipelineConfig, selection: Selection) -> dict[str, _PlanNode]:
    nodes = declare(_PlanNode, config)
    for wanted in (selection.until, selection.start, selection.only, *selection.force):
        if wanted is not None and wanted not in nodes:
            raise ConfigError(f"unknown stage {wanted!r}{did_you_mean(wanted, nodes)}")
    return nodes


def _needed(nodes: dict[str, _PlanNode], selection: Selection) -> set[str]:
    """Return the stages whose artifacts decide what runs."""
    last = selection.only or selection.until
    return set(nodes) if last is None else {last} | _upstream(nodes[last])


def _running(
    nodes: dict[str, _PlanNode],
    found: dict[str, Any],
    selection: Selection,
    unasked: set[str],
) -> set[str]:
    """Return the stages that must run: the wanted stages that are missing or forced, and their
    missing inputs. Without a selection, all that feed no other are wanted, but for the `unasked`.
    """
    fed = {above.name for node in nodes.values() for above in node.upstream} | unasked
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
    outside = running - _allowed(nodes, selection)
    for missing in (name for name in nodes if name in outside and not found[name]):
        raise ArtifactError(
            f"{first} needs the artifact of {missing}, which is missing; `ladd-pipeline run "
            f"--until {missing}` makes it"
        )


def _allowed(nodes: dict[str, _PlanNode], selection: Selection) -> set[str]:
    """Return the stages that `--only` or `--from` lets run."""
    first = selection.only or selection.start
    if selection.only or first is None:
        return {selection.only} if selection.only else set(nodes)
    return {name for name in nodes if name == first or first in _upstream(nodes[name])}


def _upstream(node: _PlanNode) -> set[str]:
    direct = {above.name for above in node.upstream}
    return direct.union(*(_upstream(above) for above in node.upstream))


def _why(
    others: list[Manifest], config: PipelineConfig, name: str, keyed: Keyed, rerun: list[str]
) -> str:
    """Say which identity fields, and which contents outside the store, differ from the nearest
    artifact of this stage, or that the stage has none.
    """
    nearest: list[str] | None = None
    for manifest in others:
        changes = changed_fields(manifest.identity, STAGES[name].identity(config))
        changes += changes_outside(manifest.outside, keyed.seen, STAGES[name], config)
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


def _start(store: ArtifactStore, config: PipelineConfig, name: str, key: str, training: str) -> str:
    """Say where in its training a stage starts, if that has checkpoints that serve."""
    if not training:
        return ""
    course: Course = STAGES[name].module().course(config)
    there = saved_in(store, store.training_folder(name, training))
    starts = course.starts(there, key)
    if not starts:
        return ""
    first = starts[0]
    if first.step == course.total:
        return f"; takes update {first.step:,} of the training {training}"
    return f"; continues at update {first.step:,} of {course.total:,}"


def require_kept(store: ArtifactStore, config: PipelineConfig, stage: PlannedStage) -> None:
    """Raise ArtifactError unless a stage's artifact exists, or its training has kept the checkpoint
    from which it is taken.
    """
    if stage.action == "done":
        return
    name, section = stage.name, getattr(config, stage.name)

    def trunk(steps: int) -> int:
        changed = config.model_copy(update={name: section.model_copy(update={"steps": steps})})
        course: Course = STAGES[name].module().course(changed)
        return course.trunk

    there = saved_in(store, store.training_folder(name, stage.training))
    kept = {one.step for one in there if not one.tail}
    if trunk(section.steps) in kept:
        return
    choices = range(1, _MOST_STEPS)
    found = [bisect_left(choices, update, key=trunk) + 1 for update in sorted(kept)]
    steps = [number for number in found if trunk(number) in kept]
    raise ArtifactError(
        f"{name} export: the training keeps no checkpoint for {section.steps:,} steps, but for "
        f"{number_list(steps) or 'no'} steps; `ladd-pipeline run --until {name} --set "
        f"{name}.steps={section.steps}` trains them, and {name}.keep_every keeps more"
    )


def changed_fields(old: Any, new: Any, where: str = "") -> list[str]:
    """Return a sentence `a.b changed from x to y` for every leaf that differs; a field that one of
    the two leaves out is `nothing`, which is not null.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted({*old, *new}):
            changes += changed_fields(
                old.get(key, _NOTHING), new.get(key, _NOTHING), f"{where}.{key}" if where else key
            )
        return changes
    return [] if old == new else [f"{where} changed from {_show(old)} to {_show(new)}"]


_NOTHING = object()


def _show(value: Any) -> str:
    import json

    return "nothing" if value is _NOTHING else json.dumps(value)


def _estimate(name: str, config: PipelineConfig, manifest: Manifest | None) -> str:
    """Say what a stage makes: as measured if its artifact exists, else as the stage estimates."""
    if manifest is None:
        expected: str = STAGES[name].module().estimate(config)
        return expected
    return (
        f"{manifest.total_bytes / 1e6:.1f} MB, took {manifest.seconds:.0f} s, "
        f"{manifest.device_hours:.2f} device-hours"
    )
