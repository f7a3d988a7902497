"""Encodes pictures to files, and crops a picture to a bucket. `decoding` reads files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from schemas.bucket import Bucket

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def encode_image(picture_HW3: np.ndarray, image_format: str, quality: int) -> bytes:
    """Encode a uint8 picture as the bytes of a png, webp or jpg file; `quality` (1 to 100) applies
    to webp and jpg.
    """
    from PIL import Image

    buffer = io.BytesIO()
    options = {"png": {}, "webp": {"quality": quality}, "jpg": {"quality": quality}}[image_format]
    Image.fromarray(picture_HW3).save(
        buffer, "JPEG" if image_format == "jpg" else image_format.upper(), **options
    )
    return buffer.getvalue()


def fit_to_bucket(picture: Image.Image, bucket: Bucket) -> Image.Image:
    """Crop the centre to the bucket's aspect ratio and scale it. A picture that already has the
    bucket's size is returned unchanged.
    """
    from PIL import Image, ImageOps

    if picture.size == bucket:
        return picture
    return ImageOps.fit(picture, bucket, Image.Resampling.LANCZOS)
