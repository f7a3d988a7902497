"""Alignment for the shapes world: which attributes of a caption does a picture show?

A small detector like CenterNet (Zhou et al. 2019): peaks of a heat map are objects, and read-outs
at a peak give colour, shape and size. It is trained on ground truth; the embedded default measures
Fréchet distances in the space of its pooled features. B pictures, H and W their height and width in
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from stages.shapes_world.captions import BACKGROUNDS, COLORS, SHAPES, SIZES, SceneSpec

STRIDE = 4
FEATURE_WIDTH = 64
_SLACK = 0.2
"""Half-width of the area that counts as the middle of a picture, as a share of its side."""


@dataclass(frozen=True)
class SeenObject:
    """One object found in a picture; centre in pixels."""

    color: str
    shape: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Seen:
    """What the judge found in one picture of `width` x `height` pixels."""

    width: int
    height: int
    objects: tuple[SeenObject, ...]
    background: str


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ShapesJudge(nn.Module):
    """The detector's network; both sides of a picture must be divisible by 8."""

    read_outs = (
        ("heat", 1),
        ("offset", 2),
        ("color", len(COLORS)),
        ("shape", len(SHAPES)),
        ("size", len(SIZES)),
    )

    def __init__(self) -> None:
        super().__init__()
        width = FEATURE_WIDTH
        self.fine = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, width, 3, stride=2, padding=1),
            _Residual(width),
            _Residual(width),
        )
        self.coarse = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1), _Residual(width), _Residual(width)
        )
        self.merge = nn.Sequential(
            nn.Conv2d(2 * width, width, 1), _Residual(width), nn.GroupNorm(8, width), nn.SiLU()
        )
        self.objects = nn.Conv2d(width, sum(channels for _, channels in self.read_outs), 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))

    @staticmethod
    def load(path: Path) -> ShapesJudge:
        """Load the trained judge. Raises FileNotFoundError when `path` is missing."""
        judge = ShapesJudge()
        judge.load_state_dict(load_file(path))
        return judge.eval().requires_grad_(False)

    def maps(self, picture_B3HW: Tensor) -> Tensor:
        """Features (B, 64, H/4, W/4) of pictures in [-1, 1]."""
        fine = self.fine(picture_B3HW)
        coarse = F.interpolate(self.coarse(fine), scale_factor=2.0)
        return self.merge(torch.cat([fine, coarse], dim=1))

    def forward(self, picture_B3HW: Tensor) -> dict[str, Tensor]:
        """Read-out maps (B, channels, H/4, W/4) and background logits (B, backgrounds)."""
        maps = self.maps(picture_B3HW)
        outputs = self.objects(maps).split([channels for _, channels in self.read_outs], dim=1)
        result = {name: output for (name, _), output in zip(self.read_outs, outputs, strict=True)}
        return result | {"background": self.background(maps.mean((2, 3)))}

    @torch.no_grad()
    def features(self, picture_B3HW: Tensor) -> Tensor:
        """Mean and standard deviation of the feature maps over the picture: (B, 128) float32."""
        maps = self.maps(picture_B3HW)
        return torch.cat([maps.mean((2, 3)), maps.std((2, 3))], dim=1).float()

    @torch.no_grad()
    def look(self, picture_B3HW: Tensor) -> list[Seen]:
        """Find the objects of each picture (in [-1, 1])."""
        out = self(picture_B3HW)
        heat = out["heat"].sigmoid()
        peaks = (heat == F.max_pool2d(heat, 5, stride=1, padding=2)) & (heat > 0.5)
        height, width = picture_B3HW.shape[-2:]
        found: list[list[SeenObject]] = [[] for _ in range(len(heat))]
        for b, _, i, j in peaks.nonzero().tolist():
            dx, dy = out["offset"][b, :, i, j].tolist()
            color, shape, size = (
                int(out[name][b, :, i, j].argmax()) for name in ("color", "shape", "size")
            )
            found[b].append(
                SeenObject(
                    COLORS[color],
                    SHAPES[shape],
                    SIZES[size],
                    (j + 0.5 + dx) * STRIDE,
                    (i + 0.5 + dy) * STRIDE,
                )
            )
        backgrounds = out["background"].argmax(1).tolist()
        return [
            Seen(width, height, tuple(things), BACKGROUNDS[k])
            for things, k in zip(found, backgrounds, strict=True)
        ]


def shown(seen: Seen, spec: SceneSpec) -> dict[str, bool]:
    """Tell which stated attributes a picture shows, matching objects so that it shows the most.

    Keys: `count`, `background`, and, when the count is right, per object `color_0`, `shape_0`,
    `size_0`, ... and `place` or `relation`. Attributes that the caption leaves open have no key.
    """
    result = {"count": len(seen.objects) == len(spec.objects)}
    if spec.background is not None:
        result["background"] = seen.background == spec.background
    if not result["count"]:
        return result
    matchings = [_matching(order, seen, spec) for order in permutations(seen.objects)]
    return result | max(matchings, key=lambda matching: sum(matching.values()))


def shows_all(seen: Seen, spec: SceneSpec) -> bool:
    """Whether a picture shows every attribute that its caption states."""
    return all(shown(seen, spec).values())


def _matching(order: tuple[SeenObject, ...], seen: Seen, spec: SceneSpec) -> dict[str, bool]:
    result = {}
    for i, (thing, wanted) in enumerate(zip(order, spec.objects, strict=True)):
        for field in ("color", "shape", "size"):
            if getattr(wanted, field) is not None:
                result[f"{field}_{i}"] = getattr(thing, field) == getattr(wanted, field)
    if spec.place is not None:
        x, y = order[0].x / seen.width - 0.5, order[0].y / seen.height - 0.5
        result["place"] = {
            "left": x < 0,
            "right": x > 0,
            "top": y < 0,
            "bottom": y > 0,
            "middle": abs(x) < _SLACK and abs(y) < _SLACK,
        }[spec.place]
    if spec.relation is not None:
        dx, dy = order[0].x - order[1].x, order[0].y - order[1].y
        result["relation"] = {"left": dx < 0, "right": dx > 0, "above": dy < 0, "below": dy > 0}[
            spec.relation
        ]
    return result
