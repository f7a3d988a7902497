"""What the stages of a plan would read and is not there: dropped data, and artifacts of their
lineage that are gone. Found before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.base.course import Course, saved_in
from pipeline.base.dropping import dropped
from pipeline.base.lineage import ancestors
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.dag import STAGES
from pipeline.planning import PlannedStage
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError


def require_inputs(
    store: ArtifactStore, config: PipelineConfig, plan: Sequence[PlannedStage]
) -> None:
    """Raise ArtifactError if a stage that will run needs what is not there."""
    if lacks := [text for stage in plan for text in lacking(store, config, stage, plan)]:
        raise ArtifactError("; ".join(lacks))


def lacking(
    store: ArtifactStore,
    config: PipelineConfig,
    stage: PlannedStage,
    plan: Sequence[PlannedStage],
) -> Iterator[str]:
    """Yield a sentence for all that a stage needs and that is not there."""
    if stage.action != "run":
        return
    by_name = {other.name: other for other in plan}
    above = [by_name[name] for name in stage.inputs if by_name[name].action != "run"]
    found = [store.find(other.name, other.key) for other in above]
    inputs = [artifact for artifact in found if artifact is not None]
    for artifact in inputs:
        yield from _dropped_data(store, config, stage, artifact)
    if STAGES[stage.name].reads_lineage:
        try:
            ancestors(inputs)
        except ArtifactError as error:
            yield f"{stage.name}: {error}"


def _dropped_data(
    store: ArtifactStore, config: PipelineConfig, stage: PlannedStage, artifact: Artifact
) -> Iterator[str]:
    name = artifact.manifest.stage
    if not STAGES[name].data or (note := dropped(artifact)) is None:
        return
    if is_trained(store, config, stage):
        return  # the result is taken from a checkpoint
    yield (
        f"{stage.name} needs the {STAGES[name].makes} of {name}/{artifact.manifest.key}, which "
        f"were dropped on {note.when[:10]}; `ladd-pipeline artifacts repair {name}` makes them "
        "again"
    )


def is_trained(store: ArtifactStore, config: PipelineConfig, stage: PlannedStage) -> bool:
    """Whether a stage trains and its training has ended: only its result is to be taken."""
    if not stage.training:
        return False
    course: Course = STAGES[stage.name].module().course(config)
    starts = course.starts(
        saved_in(store, store.training_folder(stage.name, stage.training)), stage.key
    )
    return bool(starts) and starts[0].step == course.total
