"""Small picture files of every format, in which no turned or mirrored form is like another."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
    "GIF": {},
    "TIFF": {},
    "BMP": {},
    "JPEG2000": {},
    "PPM": {},
    "MPO": {"quality": 95},
}
"""Formats that Pillow writes here, with options for little loss."""


def drawn_picture(width: int = 60, height: int = 24) -> Image.Image:
    image = Image.new("RGB", (width, height), (230, 230, 230))
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 0, width // 3, height // 2], fill=(200, 0, 0))
    pen.rectangle([0, height - height // 6, width, height], fill=(0, 0, 200))
    return image


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **{**LOSSLESS[kind], **options})
    return sink.getvalue()


def npy_of(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=allow_pickle)
    return sink.getvalue()


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures of one size, 0 to 255."""
    assert one.size == other.size, (one.size, other.size)
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).mean())
