"""What a prompt is: its cleaned text, its id, and the split, bucket and seeds that follow from it.

Every function is a pure function of the text, so adding prompts to a file does not change the
existing prompts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

HELD_OUT = "its prompt is held out for evaluation"
"""The reason that sidecars record for a sample left out of training."""

_MARKS = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""Byte order marks, zero-width spaces, soft hyphens, directions: never part of what is said."""
_JOINERS = re.compile(
    "[\u034f\u200c\u200d\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef]+"
)
"""Joiners, variation selectors, tags: part of emoji and of Persian and Indic words."""
_INVISIBLE = re.compile(f"{_MARKS.pattern}|{_JOINERS.pattern}")

SAMPLE_COLUMNS = {
    "key": "string",
    "prompt_id": "string",
    "prompt": "string",
    "seed": "int64",
    "width": "int32",
    "height": "int32",
}
"""A planned sample: one picture for a model to make."""


def clean(text: str) -> str:
    """Normalise a prompt: Unicode NFC, no control characters, no lone surrogates, no invisible
    characters that say nothing, single spaces.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    if not text.isascii() and _INVISIBLE.search(text):
        text = unicodedata.normalize("NFC", _JOINERS.sub(_joined, _MARKS.sub("", text)))
    return " ".join(text.split())


def _joined(run: re.Match[str]) -> str:
    """Return what is kept of joiners and variation selectors: they say something only after, and
    joiners between, letters and emoji beyond ASCII. A keycap is a digit with a selector.
    """
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    if run[0] == "\ufe0f" and after == "\u20e3":
        return run[0]
    if before.isascii() or before.isspace():
        return ""
    return run[0] if after > "\x7f" and not after.isspace() else run[0].rstrip("\u200c\u200d")


def lack_of(prompt: str) -> str | None:
    """Say why a cleaned text is no prompt: nothing that can be seen, or a missing value that a
    library wrote as text. None if it is one.
    """
    if not any(unicodedata.category(letter)[0] not in "CZ" for letter in prompt):
        return "empty"
    if prompt.casefold() in ("nan", "none", "null"):
        return f"a missing value written as text: {prompt}"
    return None


def kind_of(value: Any) -> str:
    """Name the kind of a JSON value, or of a table's cell, for a message."""
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "an object", list: "a list", str: "a text", bytes: "bytes", type(None): "null"}
    return kinds.get(type(value), "NaN" if value != value else "a number")


def compared(prompt: str) -> str:
    """Return what of a prompt tells it from others: the text without invisible characters. Ids,
    splits, buckets and seeds come from it, so that no prompt is another one because of them.
    """
    return prompt if prompt.isascii() else _JOINERS.sub("", prompt)


def prompt_id(prompt: str) -> str:
    """16 hex digits of the prompt's sha256."""
    return hashlib.sha256(compared(prompt).encode()).hexdigest()[:16]


def hash_fraction(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on text and purpose; splits and buckets use it."""
    digest = hashlib.sha256(f"{purpose}\0{compared(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(prompt: str, held_out_fraction: float) -> str:
    """`held_out` or `train`."""
    return "held_out" if hash_fraction(prompt, "split") < held_out_fraction else "train"


def bucket_of(prompt: str, buckets: dict[str, float]) -> str:
    """The prompt's bucket; each bucket gets a share of prompts in proportion to its weight."""
    place = hash_fraction(prompt, "bucket") * sum(buckets.values())
    for name, weight in buckets.items():
        place -= weight
        if place < 0:
            return name
    return name


def seed_of(base: int, prompt: str, image: int, *, purpose: str = "seed") -> int:
    """A sample's seed, 63 bits; it differs for each base seed, prompt, picture and purpose."""
    digest = hashlib.sha256(f"{purpose}\0{base}\0{image}\0{compared(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
