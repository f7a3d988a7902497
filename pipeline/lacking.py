"""What the stages of a plan would read and is not there: dropped data, and artifacts of their
lineage that are gone. Found before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """Raise ArtifactError if a stage that will run needs what is not there: dropped data, or an
    artifact of its lineage.
    """
    by_name = {stage.name: stage for stage in plan}
    for stage in plan:
        if stage.action != "run":
            continue
        above = [by_name[name] for name in stage.inputs if by_name[name].action != "run"]
        found = [store.find(other.name, other.key) for other in above]
        inputs = [artifact for artifact in found if artifact is not None]
        if not is_trained(store, config, stage):  # else its result is taken from a checkpoint
            for artifact in inputs:
                _require_data(stage, artifact)
        if STAGES[stage.name].reads_lineage:
            ancestors(inputs)


def _require_data(stage: PlannedStage, artifact: Artifact) -> None:
    name = artifact.manifest.stage
    if STAGES[name].data and (note := dropped(artifact)) is not None:
        raise ArtifactError(
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
