"""From an artifact back to everything that it was made of."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.store import Artifact
from schemas.errors import ArtifactError


def ancestors(artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    """These artifacts and all behind them, by stage, those first on which others rest.

    Raises ArtifactError when one has gone from the store.
    """
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        above = []
        for ref in artifact.manifest.inputs:
            upstream = artifact.store.find(ref.stage, ref.key)
            if upstream is None:
                raise ArtifactError(
                    f"{artifact.url} was made from {ref.stage}/{ref.key}, which has gone from the "
                    f"store; `ladd-pipeline run --until {ref.stage}` makes it again"
                )
            above.append(upstream)
        found |= ancestors(above) | {artifact.manifest.stage: artifact}
    return found
