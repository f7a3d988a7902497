"""Decodes any picture file to RGB as it is meant to be shown: turned as EXIF says, with 16-bit
greys scaled and transparent parts filled. docs/data.md has the rules for users.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from schemas.config import EncodeConfig
from schemas.errors import UnusableSample

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What Pillow may decode. Others of its formats start foreign programs or know no checks."""

# Tools write whole workflows into a PNG's text, which Pillow by default allows 1 MB.
PngImagePlugin.MAX_TEXT_CHUNK = 64 * 2**20
PngImagePlugin.MAX_TEXT_MEMORY = 256 * 2**20

DEFAULTS = EncodeConfig()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what shows the picture upright, as `PIL.ImageOps.exif_transpose` does it."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MIN_IS_WHITE = 258, 262, 0
"""Tags of TIFF."""


def read_picture(content: bytes, name: str, rules: EncodeConfig = DEFAULTS) -> Image.Image:
    """Decode a picture's first frame to RGB. Raises UnusableSample, naming the picture, when that
    fails, whatever the decoder raises.
    """
    if not content:
        raise UnusableSample(f"its {name} is empty")
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=formats) as image:
                _require_size(*image.size, name, rules)
                image.load()
                return _upright(_in_rgb(image, rules.background), image)
    except UnusableSample:
        raise
    except UnidentifiedImageError as error:
        raise UnusableSample(
            f"its {name} cannot be read: not a picture of a known format"
        ) from error
    except Exception as error:  # a decoder's bug: RuntimeError, SyntaxError, struct.error, …
        reason = str(error) or type(error).__name__
        raise UnusableSample(f"its {name} cannot be read: {reason}") from error


def _require_size(width: int, height: int, name: str, rules: EncodeConfig) -> None:
    shorter, longer = sorted((width, height))
    if shorter < rules.min_side:
        raise UnusableSample(
            f"its {name} has a side of less than {rules.min_side} pixels: {width}x{height}"
        )
    if longer > rules.max_aspect * shorter:
        raise UnusableSample(
            f"a side of its {name} is more than {rules.max_aspect:g} times the other: "
            f"{width}x{height}"
        )


def _in_rgb(image: Image.Image, background: str) -> Image.Image:
    """Return the pixels in RGB, with `background` behind what is transparent."""
    if image.mode.startswith("I;16"):
        image = _of_16_bits(image)
    elif image.mode == "I":
        if image.format not in ("PNG", "PPM"):  # these two hold 16 bits in it
            raise ValueError("32-bit whole numbers, whose white is not known")
        image = _grey(np.asarray(image).clip(0, 65535))
    elif image.mode == "F":
        image = _of_floats(np.asarray(image))
    if not image.has_transparency_data:
        return image.convert("RGB")
    filled = Image.new("RGBA", image.size, background)
    filled.alpha_composite(image.convert("RGBA"))
    return filled.convert("RGB")


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit greys, where 65535 is white, to 8 bits."""
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_BITS_PER_SAMPLE, (16,)) != (16,):
        raise ValueError(f"{tags[_BITS_PER_SAMPLE]} bits per sample")
    grey = _grey(65535 - values if tags.get(_PHOTOMETRIC) == _MIN_IS_WHITE else values)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _grey(values_HW: np.ndarray) -> Image.Image:
    """Scale 0 to 65535 to 8 bits, rounded."""
    return Image.fromarray(((values_HW.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))


def _of_floats(values_HW: np.ndarray) -> Image.Image:
    if not (values_HW.min() >= 0 and values_HW.max() <= 1):  # NaN compares false
        raise ValueError("floats are read from 0 to 1, these leave that range")
    return Image.fromarray((values_HW * 255).round().astype(np.uint8))


def _upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Turn and mirror the pixels as the source's EXIF says. EXIF that cannot be read turns nothing,
    as in viewers: cameras and editors write much that is broken.
    """
    try:
        turn = _TURNS.get(source.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return rgb
    return rgb if turn is None else rgb.transpose(turn)
