"""Grades colour and layout in the shapes world from the pixels. It uses no network, so it can rank
pictures for preference tuning while the trained judge stays independent.

It grades colours, background, count, place, relation and size. It does not recognise shapes; it
only uses the area of a stated shape when it grades a size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import exp, sqrt

import numpy as np
import torch

from schemas.config import ScoreConfig
from schemas.report import ScoreCard
from stages.scores.attributes import read_caption
from stages.scores.blobs import Blob, View, view
from stages.shapes_world.captions import ObjectSpec, SceneSpec

_UNIT_AREA = {"circle": 2.84, "square": 2.69, "triangle": 1.57, "cross": 2.26, "ring": 2.44}
"""Area of a shape of radius 1, as `scenes.py` draws it."""
_SIZE_BORDER = 9.75
"""Radius in pixels that separates small (at most 8.5) from big (at least 11)."""
_OBJECT_AREA = 75.0
"""Pixels of the smallest object; a smaller blob counts as a fraction of an object."""
_RIVALS = 3
"""Only this many of the largest blobs are matched with the objects of a caption."""


class Layout:
    """A `Score`: the mean of how well each stated attribute is met, each from 0 to 1."""

    card = ScoreCard(
        title="colour and layout",
        explanation="How well colours, background, number, place, relation and size fit the "
        "caption, graded from the pixels without a network.",
        low=0,
        high=1,
        licence="Apache-2.0, like this project",
        weights="none",
    )

    def __init__(self, _config: ScoreConfig, device: torch.device) -> None:
        self.device = device

    def judge(self, pictures_BHW3: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        height, width = pictures_BHW3.shape[1:3]
        specs = [read_caption(prompt) for prompt in prompts]
        views = view(pictures_BHW3, self.device)
        return np.array(
            [
                max(fit(order, seen, spec, width, height) for order in _orders(seen, spec))
                for seen, spec in zip(views, specs, strict=True)
            ],
            np.float64,
        )


def _orders(seen: View, spec: SceneSpec) -> Iterator[tuple[Blob | None, ...]]:
    """Yield every assignment of blobs to the caption's objects, with None for a missing blob."""
    count = len(spec.objects)
    rivals: list[Blob | None] = list(seen.blobs[:_RIVALS])
    return permutations(rivals + [None] * (count - len(rivals)), count)


def fit(
    order: tuple[Blob | None, ...], seen: View, spec: SceneSpec, width: int, height: int
) -> float:
    """Grade from 0 to 1 how well a picture fits a caption whose objects are the blobs `order`."""
    matched = [blob for blob in order if blob is not None]
    object_count = sum(min(1.0, blob.area / _OBJECT_AREA) for blob in seen.blobs)
    marks = [len(matched) / max(len(order), object_count)]
    if spec.background is not None:
        marks.append(seen.backgrounds[spec.background])
    for blob, wanted in zip(order, spec.objects, strict=True):
        marks += _marks_of_object(blob, wanted)
    if spec.place is not None:
        marks.append(0.0 if order[0] is None else _placed(order[0], spec.place, width, height))
    if spec.relation is not None:
        marks.append(0.0 if len(matched) < 2 else _related(matched[0], matched[1], spec.relation))
    return sum(marks) / len(marks)


def _marks_of_object(blob: Blob | None, wanted: ObjectSpec) -> Iterator[float]:
    if wanted.color is not None:
        yield blob.colors[wanted.color] if blob else 0.0
    if wanted.size is not None:
        unit_area = _UNIT_AREA.get(wanted.shape or "", 2.36)
        radius = sqrt(blob.area / unit_area) if blob else 0.0
        sign = 1 if wanted.size == "big" else -1
        yield _yes(sign * (radius - _SIZE_BORDER) / 0.6) if blob else 0.0


def _placed(blob: Blob, place: str, width: int, height: int) -> float:
    x, y = blob.x / width - 0.5, blob.y / height - 0.5
    if place == "middle":
        return _yes((0.15 - abs(x)) / 0.02) * _yes((0.15 - abs(y)) / 0.02)
    return _yes({"left": -x, "right": x, "top": -y, "bottom": y}[place] / 0.025)


def _related(first: Blob, second: Blob, relation: str) -> float:
    dx, dy = first.x - second.x, first.y - second.y
    return _yes({"left": -dx, "right": dx, "above": -dy, "below": dy}[relation] / 2.0)


def _yes(evidence: float) -> float:
    """Map evidence to 0 (clearly no), 0.5 (exactly on the border), 1 (clearly yes)."""
    return 1 / (1 + exp(-max(-50.0, min(50.0, evidence))))
