"""What a prompt is: its cleaned text, its id, and the split, bucket and seeds that follow from it.

Every function is a pure function of the text, so adding prompts to a file does not change the
existing prompts.
"""

from __future__ import annotations

import hashlib
import unicodedata

import pyarrow as pa

HELD_OUT = "its prompt is held out for evaluation"
"""The reason that sidecars record for a sample left out of training."""

SAMPLE_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "prompt_id": pa.string(),
        "prompt": pa.string(),
        "seed": pa.int64(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
)
"""A planned sample: one picture for a model to make."""


def clean(text: str) -> str:
    """Normalise a prompt: Unicode NFC, no control characters, no lone surrogates, single spaces."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return " ".join(text.split())


def prompt_id(prompt: str) -> str:
    """16 hex digits of the prompt's sha256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def hash_fraction(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends only on text and purpose; splits and buckets use it."""
    digest = hashlib.sha256(f"{purpose}\0{text}".encode()).digest()
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
    digest = hashlib.sha256(f"{purpose}\0{base}\0{image}\0{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
