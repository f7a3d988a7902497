"""The caption grammar of the shapes world: what a caption says, how it says it, and how to read it
back.

A caption states some attributes of a scene and leaves the rest open; only what it states is judged.
Knows nothing about pictures: `scenes.py` draws them, `judge.py` reads them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

COLORS = ("red", "yellow", "green", "blue", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = ("small", "big")
BACKGROUNDS = ("black", "gray", "brown", "navy", "pink")
PLACES = ("left", "right", "top", "bottom", "middle")
RELATIONS = ("left", "right", "above", "below")

_SIZE_WORDS = {"small": "small", "little": "small", "big": "big", "large": "big"}
_NOUNS = {**{shape: shape for shape in SHAPES}, "shape": None}
_PLACE_PHRASES = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle",),
}
_RELATION_PHRASES = {
    "left": ("left of",),
    "right": ("right of",),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_FILLERS = {
    "a",
    "an",
    "the",
    "one",
    "of",
    "there",
    "is",
    "picture",
    "and",
    "with",
    "background",
    "it",
}
_PREPOSITIONS = {"on", "at", "in"}

MAX_WORDS = 14
"""Longest caption: 14 words plus the tokenizer's start and end tokens make 16 tokens."""

STATED = {
    "color": 0.9,
    "shape": 0.95,
    "size": 0.6,
    "background": 0.8,
    "place": 0.7,
    "relation": 0.8,
}
"""Probability that a caption states an attribute. The unstated attributes make one-step sampling
blurry.
"""


class CaptionError(ValueError):
    """A text that the grammar cannot read."""


@dataclass(frozen=True)
class ObjectSpec:
    """What a caption says about one object; None where it says nothing."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class SceneSpec:
    """What a caption says about a scene with one or two objects; None where it says nothing.

    `place` applies to a single object (half or centre of the picture); `relation` says where the
    first of two objects is relative to the second.
    """

    objects: tuple[ObjectSpec, ...]
    background: str | None = None
    place: str | None = None
    relation: str | None = None


def sample_spec(rng: random.Random) -> SceneSpec:
    """Draw what a caption says: one or two objects, each attribute stated with the probability in
    `STATED`.
    """

    def stated(attribute: str, values: tuple[str, ...]) -> str | None:
        value = rng.choice(values)
        return value if rng.random() < STATED[attribute] else None

    def an_object() -> ObjectSpec:
        color, shape = stated("color", COLORS), stated("shape", SHAPES)
        if color is None and shape is None:
            shape = rng.choice(SHAPES)
        return ObjectSpec(color, shape, stated("size", SIZES))

    background = stated("background", BACKGROUNDS)
    if rng.random() < 0.45:
        return SceneSpec((an_object(),), background, place=stated("place", PLACES))
    return SceneSpec((an_object(), an_object()), background, relation=stated("relation", RELATIONS))


def phrase(spec: SceneSpec, rng: random.Random) -> str:
    """Say a spec in words, in one of several phrasings, within `MAX_WORDS` words."""
    for _ in range(20):
        text = _phrase_once(spec, rng)
        if len(text.split()) <= MAX_WORDS:
            return text
    return _phrase_once(spec, rng, plain=True)


def _phrase_once(spec: SceneSpec, rng: random.Random, *, plain: bool = False) -> str:
    def say(thing: ObjectSpec, article: str = "a") -> str:
        size = ""
        if thing.size is not None:
            size = (
                thing.size
                if plain
                else rng.choice([w for w, s in _SIZE_WORDS.items() if s == thing.size])
            )
        return " ".join(
            word for word in (article, size, thing.color, thing.shape or "shape") if word
        )

    on_background = ""
    if spec.background is not None:
        on_background = f"on {spec.background}"
        if not plain and rng.random() < 0.5:
            on_background = f"on a {spec.background} background"

    if len(spec.objects) == 1:
        body = say(spec.objects[0], "a" if plain else rng.choice(("a", "a", "one")))
        if not plain:
            body = rng.choice(("", "", "", "there is ", "picture of ")) + body
        if spec.place is not None:
            where = rng.choice(_PLACE_PHRASES[spec.place])
            body = (
                f"{where} {body}"
                if not plain and body.startswith("a ") and rng.random() < 0.3
                else f"{body} {where}"
            )
    else:
        first, second = (say(thing) for thing in spec.objects)
        if spec.relation is None:
            joint = "and" if plain else rng.choice(("and", "and", "with"))
            body = f"{first} {joint} {second}"
            if not plain and rng.random() < 0.15:
                body = f"picture of {body}"
        else:
            body = f"{first} {rng.choice(_RELATION_PHRASES[spec.relation])} {second}"
    if on_background and not plain and rng.random() < 0.2 and " on the " not in f" {body} ":
        return f"{on_background} {body}"
    return f"{body} {on_background}".strip()


def parse(text: str) -> SceneSpec:
    """Parse a caption back into what it states.

    Accepts every sentence of `phrase` and close variants, in any letter case, with commas and full
    stops. Raises CaptionError, naming the word, for a text outside the grammar.
    """
    words = text.lower().replace(",", " ").replace(".", " ").split()
    objects: list[ObjectSpec] = []
    background = place = relation = None
    color = size = None
    i = 0
    while i < len(words):
        word = words[i]
        if word in _PREPOSITIONS:
            tail = words[i + 1 : i + 4]
            place_word = (
                tail[1] if len(tail) > 1 and tail[0] == "the" and tail[1] in PLACES else None
            )
            if place_word is not None and tail[2:] != ["of"]:
                place, i = place_word, i + 3
                continue
            tail = [w for w in tail if w not in ("a", "the")]
            if not tail or tail[0] not in BACKGROUNDS:
                raise CaptionError(
                    f"cannot read {text!r}: expected a place or a background after {word!r}"
                )
            background = tail[0]
            i = words.index(tail[0], i) + 1
            continue
        if word in ("left", "right") and words[i + 1 : i + 2] == ["of"]:
            relation = word
            i += 2
            continue
        if word in ("above", "over", "below", "under"):
            relation = "above" if word in ("above", "over") else "below"
        elif word in COLORS:
            color = word
        elif word in _SIZE_WORDS:
            size = _SIZE_WORDS[word]
        elif word in _NOUNS:
            objects.append(ObjectSpec(color, _NOUNS[word], size))
            color = size = None
        elif word not in _FILLERS:
            raise CaptionError(f"cannot read {text!r}: the shapes grammar has no word {word!r}")
        i += 1
    if not 1 <= len(objects) <= 2:
        raise CaptionError(
            f"cannot read {text!r}: it must name one or two shapes, found {len(objects)}"
        )
    return SceneSpec(tuple(objects), background, place, relation)


def vocabulary() -> list[str]:
    """Return every word of the grammar, sorted: the tokenizer's whole-word tokens."""
    phrases = [
        p for group in (*_PLACE_PHRASES.values(), *_RELATION_PHRASES.values()) for p in group
    ]
    words = {*COLORS, *_NOUNS, *_SIZE_WORDS, *BACKGROUNDS, *PLACES, *_FILLERS, *_PREPOSITIONS}
    return sorted(words | {word for p in phrases for word in p.split()})
