"""Draws scenes of the shapes world: they obey what a caption states and are otherwise random.

No caption states exact place, rotation, proportions, shade, lighting, outline, shadow or gradient;
they vary freely. Pure numpy; the signed distance functions follow Quilez's 2D list. B scenes, H and
W picture height and width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stages.shapes_world.captions import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    STATED,
    ObjectSpec,
    SceneSpec,
)

OBJECT_RGB = {
    "red": (214, 40, 44),
    "yellow": (247, 208, 42),
    "green": (56, 168, 72),
    "blue": (54, 116, 236),
    "purple": (148, 62, 196),
    "white": (240, 240, 240),
}
BACKGROUND_RGB = {
    "black": (24, 24, 28),
    "gray": (126, 128, 132),
    "brown": (112, 76, 48),
    "navy": (26, 34, 92),
    "pink": (228, 168, 186),
}
RADIUS = {"small": (7.0, 8.5), "big": (11.0, 14.0)}
"""Radius in pixels, the same in every bucket."""
TILT = 0.26
"""Largest rotation of an object away from upright, in radians."""

SCATTER = 2.0
"""Largest offset of an object from where its caption puts it, in pixels along each axis. A caption
that states place or relation leaves only the exact place open.
"""

_GAP = 2.0
_RELATION_MARGIN = 7.0


@dataclass(frozen=True)
class SceneObject:
    """One drawn object. Positions and radius in pixels, angles in radians."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float
    stretch: float
    shade: tuple[float, float, float]
    light_angle: float
    light: float
    outline: float


@dataclass(frozen=True)
class Scene:
    """A fully determined scene; rendering it twice gives the same bytes."""

    width: int
    height: int
    background: str
    background_shade: tuple[float, float, float]
    gradient_angle: float
    gradient: float
    shadow: float
    objects: tuple[SceneObject, ...]


def sample_scene(
    spec: SceneSpec,
    width: int,
    height: int,
    rng: random.Random,
    *,
    tilt: float = TILT,
    scatter: float | None = SCATTER,
) -> Scene:
    """Draw a scene of `width` x `height` pixels that shows everything `spec` states.

    `tilt` bounds the rotation of objects, in radians; with pi they rotate freely. `scatter` bounds
    their offset from the position that place or relation aims at, in pixels; with None they may be
    anywhere that obeys `spec`.
    """
    while True:
        things = [_sample_object(thing, rng, tilt) for thing in spec.objects]
        radii = [thing["radius"] for thing in things]
        places = _sample_places(spec, radii, width, height, rng, scatter)
        if places is not None:
            break
    objects = tuple(
        SceneObject(x=x, y=y, **thing) for thing, (x, y) in zip(things, places, strict=True)
    )
    return Scene(
        width=width,
        height=height,
        background=spec.background or rng.choice(BACKGROUNDS),
        background_shade=_shade(rng),
        gradient_angle=rng.uniform(0, 2 * np.pi),
        gradient=rng.uniform(0, 0.3),
        shadow=rng.uniform(0, 0.5),
        objects=objects,
    )


def _sample_object(spec: ObjectSpec, rng: random.Random, tilt: float) -> dict:
    size = spec.size or rng.choice(SIZES)
    return {
        "color": spec.color or rng.choice(COLORS),
        "shape": spec.shape or rng.choice(SHAPES),
        "size": size,
        "radius": rng.uniform(*RADIUS[size]),
        "rotation": rng.uniform(-1, 1) * tilt,
        "stretch": rng.uniform(-0.1, 0.1),
        "shade": _shade(rng),
        "light_angle": rng.uniform(0, 2 * np.pi),
        "light": rng.uniform(0, 0.3),
        "outline": rng.choice((0.0, 0.0, 1.2)),
    }


def _shade(rng: random.Random) -> tuple[float, float, float]:
    """Draw a factor per RGB channel: a common brightness and a slight tint."""
    brightness = rng.uniform(0.9, 1.08)
    red, green, blue = (brightness * rng.uniform(0.96, 1.04) for _ in range(3))
    return red, green, blue


def _sample_places(
    spec: SceneSpec,
    radii: list[float],
    width: int,
    height: int,
    rng: random.Random,
    scatter: float | None,
) -> list[tuple[float, float]] | None:
    """Draw centres inside the picture so that objects do not touch and place or relation is obeyed.

    Returns None if 60 draws fail.
    """
    for _ in range(60):
        if scatter is None:
            centres = [
                (rng.uniform(r + 1, width - r - 1), rng.uniform(r + 1, height - r - 1))
                for r in radii
            ]
        else:
            centres = [
                (
                    _within(x + rng.uniform(-scatter, scatter), r, width),
                    _within(y + rng.uniform(-scatter, scatter), r, height),
                )
                for (x, y), r in zip(_aims(spec, radii, width, height, rng), radii, strict=True)
            ]
        if _lie_apart(centres, radii) and _is_obeyed(spec, centres, width, height):
            return centres
    return None


def _lie_apart(centres: list[tuple[float, float]], radii: list[float]) -> bool:
    return len(centres) == 1 or math.dist(*centres) >= sum(radii) + _GAP


def _is_obeyed(
    spec: SceneSpec, centres: list[tuple[float, float]], width: int, height: int
) -> bool:
    if len(centres) == 1:
        return _is_placed(centres[0], spec.place, width, height)
    (x0, y0), (x1, y1) = centres
    return _is_related(x0 - x1, y0 - y1, spec.relation)


def _within(centre: float, radius: float, side: int) -> float:
    return min(max(centre, radius + 1), side - radius - 1)


def _aims(
    spec: SceneSpec, radii: list[float], width: int, height: int, rng: random.Random
) -> list[tuple[float, float]]:
    """The positions that place or relation aims at; an unstated one is drawn at random."""
    if len(radii) == 1:
        return [_aim_of_place(spec.place or rng.choice(PLACES), width, height)]
    return _aims_of_relation(spec.relation or rng.choice(RELATIONS), radii, width, height)


def _aim_of_place(place: str, width: int, height: int) -> tuple[float, float]:
    x = {"left": 0.25, "right": 0.75}.get(place, 0.5)
    y = {"top": 0.25, "bottom": 0.75}.get(place, 0.5)
    return x * width, y * height


def _aims_of_relation(
    relation: str, radii: list[float], width: int, height: int
) -> list[tuple[float, float]]:
    """Aim both at a line through the middle, slanted if the picture is too narrow for them."""
    across = relation in ("left", "right")
    side, other = (width, height) if across else (height, width)
    apart = sum(radii) + _GAP + SCATTER
    along = min(0.5 * side, side - sum(radii) - 2)
    slant = math.sqrt(max(apart**2 - along**2, 0.0))
    slant = min(slant, other - sum(radii) - 2)
    sign = -1 if relation in ("left", "above") else 1
    aims = []
    for which in (sign, -sign):
        main, cross = side / 2 + which * along / 2, other / 2 + which * slant / 2
        aims.append((main, cross) if across else (cross, main))
    return aims


def _is_placed(centre: tuple[float, float], place: str | None, width: int, height: int) -> bool:
    x, y = centre[0] / width - 0.5, centre[1] / height - 0.5
    return {
        None: True,
        "left": x < -0.07,
        "right": x > 0.07,
        "top": y < -0.07,
        "bottom": y > 0.07,
        "middle": abs(x) < 0.1 and abs(y) < 0.1,
    }[place]


def _is_related(dx: float, dy: float, relation: str | None) -> bool:
    return {
        None: True,
        "left": dx < -_RELATION_MARGIN,
        "right": dx > _RELATION_MARGIN,
        "above": dy < -_RELATION_MARGIN,
        "below": dy > _RELATION_MARGIN,
    }[relation]


def describe(scene: Scene, rng: random.Random) -> SceneSpec:
    """Draw a true description of a scene, each attribute stated with the probability in `STATED`.

    The objects may be named in either order; place and relation are stated only where they are
    clearly visible.
    """

    def said(attribute: str, value: str) -> str | None:
        return value if rng.random() < STATED[attribute] else None

    things = list(scene.objects)
    rng.shuffle(things)
    objects = []
    for thing in things:
        color, shape = said("color", thing.color), said("shape", thing.shape)
        if color is None and shape is None:
            shape = thing.shape
        objects.append(ObjectSpec(color, shape, said("size", thing.size)))
    background = said("background", scene.background)
    if len(things) == 1:
        centre = (things[0].x, things[0].y)
        places = [p for p in PLACES if _is_placed(centre, p, scene.width, scene.height)]
        place = said("place", rng.choice(places)) if places else None
        return SceneSpec(tuple(objects), background, place=place)
    dx, dy = things[0].x - things[1].x, things[0].y - things[1].y
    relations = [r for r in RELATIONS if _is_related(dx, dy, r)]
    relation = said("relation", rng.choice(relations)) if relations else None
    return SceneSpec(tuple(objects), background, relation=relation)


def render(scenes: list[Scene]) -> np.ndarray:
    """Draw scenes of one size: (B, H, W, 3) uint8."""
    width, height = scenes[0].width, scenes[0].height
    assert all((s.width, s.height) == (width, height) for s in scenes)
    y_HW, x_HW = np.meshgrid(
        np.arange(height, dtype=np.float32) + 0.5,
        np.arange(width, dtype=np.float32) + 0.5,
        indexing="ij",
    )

    def column(values: list) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    base = np.asarray(
        [np.multiply(BACKGROUND_RGB[s.background], s.background_shade) for s in scenes], np.float32
    )
    angle = column([s.gradient_angle for s in scenes])
    slope = ((x_HW / width - 0.5) * np.cos(angle) + (y_HW / height - 0.5) * np.sin(angle)) * 2
    picture = base[:, None, None, :] * (1 + column([s.gradient for s in scenes]) * slope)[..., None]
    for slot in range(max(len(s.objects) for s in scenes)):
        rows = np.asarray([i for i, s in enumerate(scenes) if len(s.objects) > slot])
        things = [scenes[i].objects[slot] for i in rows]
        shadow = column([scenes[i].shadow for i in rows])
        picture[rows] = _draw(picture[rows], things, shadow, x_HW, y_HW, column)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _draw(
    picture: np.ndarray,
    things: list[SceneObject],
    shadow: np.ndarray,
    x_HW: np.ndarray,
    y_HW: np.ndarray,
    column: Callable[[list], np.ndarray],
) -> np.ndarray:
    x, y = column([t.x for t in things]), column([t.y for t in things])
    radius = column([t.radius for t in things])
    cos, sin = (
        column([np.cos(t.rotation) for t in things]),
        column([np.sin(t.rotation) for t in things]),
    )
    stretch = column([t.stretch for t in things])
    shapes = [t.shape for t in things]

    def distance(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Signed distance to the edge in pixels, negative inside."""
        u = (dx * cos + dy * sin) / (radius * (1 + stretch))
        v = (-dx * sin + dy * cos) / (radius * (1 - stretch))
        return _signed_distance(u, v, shapes) * radius

    dark = shadow * np.clip(0.5 - distance(x_HW - x - 2, y_HW - y - 2) / 3, 0, 1)
    picture = picture * (1 - dark[..., None])
    edge = distance(x_HW - x, y_HW - y)
    cover = np.clip(0.5 - edge, 0, 1)[..., None]
    angle = column([t.light_angle for t in things])
    light = (
        column([t.light for t in things])
        * ((x_HW - x) * np.cos(angle) + (y_HW - y) * np.sin(angle))
        / radius
    )
    border = column([t.outline for t in things])
    rim = np.where(border > 0, 0.45 * np.clip(edge + border + 0.5, 0, 1), 0.0)
    color = np.asarray([np.multiply(OBJECT_RGB[t.color], t.shade) for t in things], np.float32)[
        :, None, None, :
    ]
    color = color * ((1 + light) * (1 - rim))[..., None]
    return picture * (1 - cover) + color * cover


def _signed_distance(u: np.ndarray, v: np.ndarray, shapes: list[str]) -> np.ndarray:
    """Return unit-radius signed distances (B, H, W), one shape per row."""
    out = np.empty_like(u)
    for shape in set(shapes):
        rows = [i for i, name in enumerate(shapes) if name == shape]
        a, b = np.abs(u[rows]), np.abs(v[rows])
        match shape:
            case "circle":
                out[rows] = np.hypot(a, b) - 0.95
            case "square":
                out[rows] = np.maximum(a, b) - 0.82
            case "triangle":
                out[rows] = np.maximum(-v[rows], 0.866 * a + 0.5 * v[rows]) - 0.55
            case "cross":
                out[rows] = np.minimum(np.maximum(a - 1.0, b - 0.34), np.maximum(a - 0.34, b - 1.0))
            case "ring":
                out[rows] = np.abs(np.hypot(a, b) - 0.72) - 0.27
    return out
