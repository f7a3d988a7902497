"""Makes again what is damaged, dropped or failed in an artifact, shard by shard: the rest stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.base.checking import Damage, damaged
from pipeline.base.dropping import dropped, forget_drop
from pipeline.base.lineage import unfinished_readers
from pipeline.base.markers import finished_shards, forget
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.dag import STAGES
from pipeline.executor import execute
from pipeline.lacking import is_trained
from pipeline.observe import Observer
from pipeline.planning import PlannedStage
from schemas.config import PipelineConfig
from schemas.errors import ArtifactError, Locked


def repair(
    config: PipelineConfig,
    store: ArtifactStore,
    plan: Sequence[PlannedStage],
    name: str,
    damages: Sequence[Damage],
    observer: Observer,
) -> None:
    """Make the damaged files of a committed artifact again, with the bytes of its manifest, which
    stays as it is. Raises ArtifactError if they cannot be made, or come out with other bytes.
    """
    stage = next(one for one in plan if one.name == name)
    if stage.training and not is_trained(store, config, stage):
        raise ArtifactError(
            f"{name}/{stage.key} would have to be trained again, because its training keeps no "
            f"checkpoint of it; `ladd-pipeline run --force {name}` does that"
        )
    artifact = _found(store, stage)
    store.remove_files([artifact.name(damage.path) for damage in damages])
    others = [replace(one, action="skip") if one.action == "run" else one for one in plan]
    alone = [
        replace(one, action="run", why="damaged") if one.name == name else one for one in others
    ]
    paths = frozenset(damage.path for damage in damages)
    execute(config, store, alone, observer, repairs={name: paths})
    if left := damaged(artifact):
        raise ArtifactError(f"{left[0].text}: {name} does not make it")
    if dropped(artifact) is not None:
        forget_drop(artifact)


def uncommit_failed(store: ArtifactStore, stage: PlannedStage) -> int:
    """Take back the shards of a stage in which samples failed, and its manifest, so that a run
    makes these shards again and commits what comes out. Returns how many there are. Raises Locked
    if an unfinished stage has begun to read the artifact.
    """
    folder = store.folder(stage.name, stage.key)
    failed = [
        name for name, stats in finished_shards(store, folder).items() if stats.counts.get("failed")
    ]
    if not failed:
        return 0
    if (artifact := store.find(stage.name, stage.key)) is not None:
        require_unread(artifact)
        store.remove(f"{folder}/manifest.json")
    forget(store, folder, failed)
    return len(failed)


def require_unread(artifact: Artifact) -> None:
    """Raise Locked if a stage that is not finished has begun to read the artifact."""
    readers = unfinished_readers(artifact, STAGES)
    if readers:
        raise Locked(
            f"{artifact.manifest.stage}/{artifact.manifest.key} is read by {', '.join(readers)}, "
            "which is not finished; let it finish first, or remove it with `ladd-pipeline "
            "artifacts gc`"
        )


def _found(store: ArtifactStore, stage: PlannedStage) -> Artifact:
    artifact = store.find(stage.name, stage.key)
    assert artifact is not None
    return artifact
