"""The context that a stage runs in, without an engine, and what the engine makes of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from schemas.config import PipelineConfig
from tests.support.manifests import manifest_of


def ignore(*_: object) -> None:
    """Takes progress or a warning, and keeps none."""


def make_context(
    stage: str,
    config: PipelineConfig,
    store: ArtifactStore,
    inputs: Iterable[Artifact] = (),
    *,
    key: str = "k",
    training: str | None = None,
    report: Callable[[str, int, int], None] = ignore,
    warn: Callable[[str], None] = ignore,
    note: Callable[[str], None] = ignore,
) -> StageContext:
    """A stage's context; give lists' `append` as `warn` to see what is warned of."""
    found = {artifact.manifest.stage: artifact for artifact in inputs}
    training = training or f"of-{key}"
    return StageContext(stage, key, training, config, store, found, report, warn, note)


def commit(context: StageContext, result: StageResult) -> Artifact:
    """The artifact that the engine would make of a stage's result."""
    made = {"counts": result.counts, "metrics": result.metrics, "details": result.details}
    return context.store.commit(manifest_of(context.stage, result.files, key=context.key, **made))
