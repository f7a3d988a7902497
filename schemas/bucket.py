"""Aspect buckets: `WIDTHxHEIGHT` in pixels."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

_FORM = re.compile(r"[1-9]\d*x[1-9]\d*")


class Bucket(NamedTuple):
    """A picture size in pixels; `str()` gives `WIDTHxHEIGHT`."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @staticmethod
    def parse(text: str) -> Bucket:
        """Parse WIDTHxHEIGHT. Raises ValueError for any other text."""
        if not _FORM.fullmatch(text):
            raise ValueError(f"bucket {text!r} is not WIDTHxHEIGHT in pixels, such as 1024x1024")
        width, height = text.split("x")
        return Bucket(int(width), int(height))

    def require_divisible(self, unit: int) -> None:
        """Raise ValueError unless both sides are multiples of `unit` pixels (VAE factor times
        patch size).
        """
        if self.width % unit or self.height % unit:
            nearest = Bucket(*(max(unit, round(side / unit) * unit) for side in self))
            raise ValueError(
                f"bucket {self} does not fit the teacher: both sides must be divisible by {unit} "
                f"(VAE factor x patch size); use {nearest}"
            )


def nearest_bucket(width: int, height: int, buckets: list[Bucket]) -> Bucket:
    """Return the bucket whose aspect ratio is closest to a picture's, by the ratio of ratios."""
    ratio = width / height
    return min(
        buckets, key=lambda b: (max(ratio * b.height / b.width, b.width / b.height / ratio), b)
    )


def _check(text: str) -> str:
    Bucket.parse(text)
    return text


BucketName = Annotated[str, AfterValidator(_check)]
