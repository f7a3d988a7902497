"""Which distances an evaluation measures, and in which feature space each. Does not import numpy:
`plan` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.config import EvalConfig

Kind = Literal["fid", "patch_fid", "kid", "cmmd", "precision", "recall"]
_CLIP = "clip_features"


@dataclass(frozen=True)
class Measure:
    """One distance to the teacher's pictures."""

    name: str
    """As reports and gates name it: kid, or kid_inception_features in a further space."""
    kind: Kind
    space: str
    """Name of the feature space."""


def measures_of(config: EvalConfig) -> list[Measure]:
    """All distances, those in `features` first. CMMD is defined for CLIP (Jayasumana et al. 2024):
    if CLIP is a further space, CMMD is measured there, and nothing else is, since features of unit
    length hardly show a loss of diversity.
    """
    main, further = config.features.name, [space.name for space in config.more_features]
    kinds: tuple[Kind, ...] = ("fid", "patch_fid", "kid", "cmmd", "precision", "recall")
    measures = [Measure(kind, kind, main) for kind in kinds if kind != "cmmd"]
    measures.insert(3, Measure("cmmd", "cmmd", _CLIP if _CLIP in further else main))
    for space in further:
        if space != _CLIP:
            in_space: tuple[Kind, ...] = ("fid", "kid", "precision", "recall")
            measures += [Measure(f"{kind}_{space}", kind, space) for kind in in_space]
    return measures
