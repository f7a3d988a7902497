"""The work of scores and feature spaces: operations for a picture, and bytes of weights.

Counted for the published networks that docs/scores.md names; another one of the same name may be
larger or smaller.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.work import Part
from schemas.bucket import Bucket
from schemas.config import PipelineConfig
from stages.estimates.pictures import mean, pixels
from stages.scores.patches import patch_side

_OF_PIXEL = 37_296
"""Operations of the embedded judge for a pixel."""


def _transformer(layers: int, width: int, tokens: int) -> float:
    """Operations of a transformer whose MLP is four times as wide, for so many tokens."""
    return float(layers * (24 * width**2 * tokens + 4 * tokens**2 * width))


_VIT_L, _VIT_H = _transformer(24, 1024, 257), _transformer(32, 1280, 257)  # 224 px, patches of 14
_CLIP_L = _VIT_L + _transformer(12, 768, 77)
_CLIP_H = _VIT_H + _transformer(24, 1024, 77)
_FLOPS = {
    "clip_score": _CLIP_L,
    "pick_score": _CLIP_H,
    "hps": _CLIP_H,
    "image_reward": _transformer(24, 1024, 197) + _transformer(12, 768, 35) * 1.5,  # 224 px / 16
    "aesthetic": _VIT_L,
    "clip_features": _VIT_L,
    "dino_features": _VIT_L,
    "inception_features": 11.4e9,
}
_PARAMETERS = {
    "clip_score": 428e6,
    "pick_score": 986e6,
    "hps": 986e6,
    "image_reward": 446e6,
    "aesthetic": 428e6,
    "clip_features": 428e6,
    "dino_features": 304e6,
    "inception_features": 24e6,
}
_WIDTHS = {"inception_features": 2048, "judge_features": 64}
_USUAL_WIDTH = 1024


def judged(config: PipelineConfig, names: Iterable[str], pictures: float) -> tuple[Part, ...]:
    """The work of these scores and feature spaces on so many pictures."""
    own = _OF_PIXEL * mean(config, pixels)
    flops = sum(_FLOPS.get(name, own) for name in names)
    return (Part("scores", pictures * flops),)


def judged_crops(config: PipelineConfig, name: str, pictures: float) -> tuple[Part, ...]:
    """The work of a feature space on all crops of so many pictures. Those of one picture together
    have as many pixels as it has.
    """
    return judged(config, [name], pictures * (mean(config, crops) if name in _FLOPS else 1))


def crops(bucket: Bucket) -> int:
    """Crops of a picture for the distances between patches."""
    side = patch_side(bucket.height, bucket.width)
    return (bucket.height // side) * (bucket.width // side)


def weight_bytes(names: Iterable[str]) -> int:
    """Bytes of the networks in float32."""
    return int(4 * sum(_PARAMETERS.get(name, 4e5) for name in names))


def feature_bytes(name: str) -> int:
    """Bytes of a picture's features in a space."""
    return 4 * _WIDTHS.get(name, _USUAL_WIDTH)
