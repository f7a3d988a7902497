"""Finds the background and the coloured blobs of a shapes picture from its pixels, no network.

A background of the shapes world is one colour under a linear gradient, so it is fitted to the
border as a plane over the picture; shadows darken it. Everything else is a blob. B pictures, H and
W their height and width in pixels, K colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.shapes_world.captions import BACKGROUNDS, COLORS
from stages.shapes_world.scenes import BACKGROUND_RGB, OBJECT_RGB

_BORDER = 2
_SMALLEST = 30.0
"""Blobs of fewer pixels are specks; the smallest object has about 75."""
_FOREIGN, _SOFTNESS = 28.0, 5.0
"""RGB distance to the background or its shadow above which a pixel belongs to an object."""
_HUE_SPREAD = 0.15
"""In radians; the nearest two colours, blue and purple, are 0.4 apart."""
_BACKGROUND_SPREAD = 25.0
"""In RGB levels; the nearest two backgrounds, black and navy, are 65 apart."""


@dataclass(frozen=True)
class Blob:
    """A connected patch of one colour: its centre and area in pixels, and how much its colour
    resembles each named colour (sums to 1).
    """

    x: float
    y: float
    area: float
    colors: dict[str, float]


@dataclass(frozen=True)
class View:
    """One picture: its blobs, largest first, and how much its background resembles each
    named background (sums to 1).
    """

    backgrounds: dict[str, float]
    blobs: tuple[Blob, ...]


def view(pictures_BHW3: np.ndarray, device: torch.device) -> list[View]:
    """Find the background and the blobs of each uint8 picture."""
    pixels = torch.from_numpy(pictures_BHW3).to(device).float()
    background = _fit_background(pixels)
    weight = _foreignness(pixels, background)
    colors = _color_shares(pixels, weight)
    kinds = torch.where(weight > 0.5, colors.argmax(-1) + 1, 0)
    blobs = _blobs(_components(kinds), kinds, weight, colors)
    palette = torch.tensor([BACKGROUND_RGB[name] for name in BACKGROUNDS], device=device).float()
    centre = background.mean((1, 2))
    distance = torch.cdist(centre, palette) / _BACKGROUND_SPREAD
    shares = (-(distance**2)).softmax(-1).tolist()
    return [
        View(dict(zip(BACKGROUNDS, row, strict=True)), tuple(found))
        for row, found in zip(shares, blobs, strict=True)
    ]


def _fit_background(pixels_BHW3: Tensor) -> Tensor:
    """Fit a plane to the border's colours, (B, H, W, 3). The fit is robust, since objects may
    touch the border.
    """
    height, width = pixels_BHW3.shape[1:3]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    terms = torch.stack([torch.ones_like(x), x, y], dim=-1).to(pixels_BHW3)  # (H, W, 3)
    border = torch.ones(height, width, dtype=torch.bool, device=pixels_BHW3.device)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    inputs, targets = terms[border], pixels_BHW3[:, border]
    trust = torch.ones(targets.shape[:2]).to(targets)
    for _ in range(4):
        weighted = inputs.T * trust[:, None]  # (B, 3, M)
        plane = torch.linalg.solve(weighted @ inputs, weighted @ targets)
        error = (targets - inputs @ plane).norm(dim=-1)
        trust = 1 / (1 + (error / 10) ** 2)
    return torch.einsum("hwt,btc->bhwc", terms, plane).clamp(1, 255)


def _foreignness(pixels_BHW3: Tensor, background_BHW3: Tensor) -> Tensor:
    """Grade each pixel from 0 (background or its shadow) to 1 (anything else): (B, H, W)."""
    shade = (pixels_BHW3 * background_BHW3).sum(-1) / (background_BHW3**2).sum(-1)
    nearest = shade.clamp(0.45, 1.05)[..., None] * background_BHW3
    return torch.sigmoid(((pixels_BHW3 - nearest).norm(dim=-1) - _FOREIGN) / _SOFTNESS)


def _color_shares(pixels_BHW3: Tensor, weight_BHW: Tensor) -> Tensor:
    """Grade how much each pixel's hue resembles each named colour, (B, H, W, K).

    Light and shade change a colour's brightness, but hardly its direction in RGB. Edges take the
    hue of what they enclose.
    """
    trusted = torch.cat([pixels_BHW3 * weight_BHW[..., None], weight_BHW[..., None]], dim=-1)
    mean = F.avg_pool2d(trusted.permute(0, 3, 1, 2), 3, stride=1, padding=1).permute(0, 2, 3, 1)
    hue = F.normalize(mean[..., :3] / mean[..., 3:].clamp(min=1e-6), dim=-1)
    palette = torch.tensor([OBJECT_RGB[name] for name in COLORS]).to(pixels_BHW3)
    angle = (hue @ F.normalize(palette, dim=-1).T).clamp(-1, 1).acos()
    return (-((angle / _HUE_SPREAD) ** 2)).softmax(-1)


def _components(kinds_BHW: Tensor) -> Tensor:
    """Give each 4-connected patch of equal, non-zero kind one id: (B, H, W) int64."""
    padded = F.pad(kinds_BHW, (1, 1, 1, 1))
    ids = torch.arange(padded[0].numel(), device=padded.device).view(padded.shape[1:])
    ids = ids.expand_as(padded)
    turns = [(1, 1), (-1, 1), (1, 2), (-1, 2)]
    joined = [(torch.roll(padded, *turn) == padded) & (padded > 0) for turn in turns]
    while True:
        grown = ids
        for turn, same in zip(turns, joined, strict=True):
            grown = torch.where(same, torch.maximum(grown, torch.roll(grown, *turn)), grown)
        flat = grown.flatten(1)
        grown = flat.gather(1, flat).view_as(grown)  # follow each id to its own id
        if torch.equal(grown, ids):
            return ids[:, 1:-1, 1:-1]
        ids = grown


def _blobs(
    ids_BHW: Tensor, kinds_BHW: Tensor, weight_BHW: Tensor, colors_BHWK: Tensor
) -> list[list[Blob]]:
    batch, height, width = ids_BHW.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y], dim=-1).to(colors_BHWK)
    values = torch.cat([places.expand(batch, -1, -1, -1), colors_BHWK], dim=-1)
    inside = kinds_BHW > 0
    owner = torch.arange(batch, device=ids_BHW.device)[:, None, None].expand_as(ids_BHW)[inside]
    keys, slot = torch.unique(torch.stack([owner, ids_BHW[inside]]), dim=1, return_inverse=True)
    sums = torch.zeros(keys.shape[1], values.shape[-1], device=values.device)
    sums.index_add_(0, slot, values[inside] * weight_BHW[inside][:, None])
    found: list[list[Blob]] = [[] for _ in range(batch)]
    for b, (area, sum_x, sum_y, *shares) in zip(keys[0].tolist(), sums.tolist(), strict=True):
        if area >= _SMALLEST:
            colors = {name: share / area for name, share in zip(COLORS, shares, strict=True)}
            found[b].append(Blob(sum_x / area, sum_y / area, area, colors))
    return [sorted(blobs, key=lambda blob: -blob.area) for blobs in found]
