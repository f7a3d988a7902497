"""Pictures are read as they are meant to be shown, or refused with a reason."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from schemas.config import EncodeConfig
from schemas.errors import UnusableSample
from stages.pictures import decoding
from stages.pictures.decoding import read_picture
from tests.support.picture_files import apart, drawn_picture, file_of

ORIENTATION = 0x0112
WHITE = (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF"])
def test_pictures_are_turned_as_exif_says(kind, orientation):
    """Some of Pillow's decoders turn by themselves: then nothing may be turned twice."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    shown = drawn_picture()
    shown.getexif()[ORIENTATION] = orientation
    shown = ImageOps.exif_transpose(shown)
    assert apart(read_picture(file_of(drawn_picture(), kind, exif=exif), "x"), shown) < 6


def test_exif_that_is_broken_turns_nothing():
    content = file_of(drawn_picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f junk")
    assert apart(read_picture(content, "x"), drawn_picture()) < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_greys_of_16_bits_keep_their_levels(kind):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).repeat(8).reshape(16, 128)
    read = np.asarray(read_picture(file_of(Image.fromarray(levels), kind), "x"))
    assert np.array_equal(read[..., 0].ravel(), np.arange(256).repeat(8))


def test_greys_of_16_bits_whose_lowest_is_white():
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    levels = np.full((16, 16), 65535, np.uint16)
    levels[:8] = 0
    read = np.asarray(read_picture(file_of(Image.fromarray(levels), "TIFF", tiffinfo=info), "x"))
    assert read[0, 0].tolist() == [255] * 3 and read[-1, 0].tolist() == [0] * 3


def test_floats_are_read_from_0_to_1_or_refused():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    read = np.asarray(read_picture(file_of(Image.fromarray(values), "TIFF"), "x"))
    assert np.array_equal(read[..., 0].ravel(), np.arange(256))
    for bad in (values * 255, values - 1, values * np.nan):
        with pytest.raises(UnusableSample, match="floats are read from 0 to 1"):
            read_picture(file_of(Image.fromarray(bad), "TIFF"), "x")


def test_whole_numbers_of_32_bits_are_refused():
    content = file_of(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF")
    with pytest.raises(UnusableSample, match="32-bit whole numbers"):
        read_picture(content, "x")


def clear_left_half(mode: str) -> tuple[Image.Image, dict]:
    """A picture whose left half is transparent over a hidden red, and its options of saving."""
    alpha = Image.new("L", (16, 16), 255)
    alpha.paste(0, (0, 0, 8, 16))
    hidden = Image.new("RGB", (16, 16), (0, 0, 255))
    hidden.paste((255, 0, 0), (0, 0, 8, 16))
    if mode == "P":
        return hidden.quantize(2, dither=Image.Dither.NONE), {}
    if mode in ("RGB", "L", "1"):  # one colour is the transparent one
        grey = Image.new(mode, (16, 16), (0, 0, 255) if mode == "RGB" else 255)
        grey.paste((255, 0, 0) if mode == "RGB" else 0, (0, 0, 8, 16))
        return grey, {"transparency": (255, 0, 0) if mode == "RGB" else 0}
    if mode == "I;16":
        values = np.full((16, 16), 65535, np.uint16)
        values[:, :8] = 300
        return Image.fromarray(values), {"transparency": 300}
    image = hidden.convert({"LA": "L", "RGBA": "RGB"}[mode])
    image.putalpha(alpha)
    return image, {}


@pytest.mark.parametrize("background", ["#ffffff", "#102030"])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGBA", kind) for kind in ("PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "GIF")),
        *((mode, "PNG") for mode in ("LA", "P", "RGB", "L", "1", "I;16")),
        ("P", "GIF"),
    ],
)
def test_transparent_parts_show_the_background_and_no_hidden_colour(mode, kind, background):
    image, options = clear_left_half(mode)
    if mode == "P":
        options = {"transparency": image.getpixel((0, 0))}
    content = file_of(image, kind, **options)
    read = read_picture(content, "x", EncodeConfig(background=background))
    wanted = tuple(bytes.fromhex(background[1:]))
    assert np.abs(np.subtract(read.getpixel((1, 8)), wanted)).max() <= 6
    opaque = {"LA": (29, 29, 29), "L": WHITE, "1": WHITE, "I;16": WHITE}.get(mode, (0, 0, 255))
    assert np.abs(np.subtract(read.getpixel((14, 8)), opaque)).max() <= 6


def test_half_transparent_parts_are_mixed():
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert read_picture(file_of(image), "x").getpixel((8, 8)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_show_the_same_picture(mode):
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    grey = drawn_picture().convert("L").convert("1", dither=Image.Dither.NONE)
    shown = drawn_picture() if mode not in ("1", "L") else grey.convert("RGB")
    image = shown.quantize(8) if mode == "P" else shown.convert(mode)
    assert apart(read_picture(file_of(image, kind), "x"), shown) < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind):
    others = [Image.new("RGB", (60, 24), colour) for colour in ("red", "lime")]
    content = file_of(drawn_picture(), kind, save_all=True, append_images=others)
    assert apart(read_picture(content, "x"), drawn_picture()) < 1


def test_long_text_in_a_png_is_no_reason_to_refuse_it():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 5_000_000, zip=True)
    assert apart(read_picture(file_of(drawn_picture(), pnginfo=info), "x"), drawn_picture()) == 0


def chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + check


def png_of_size(width: int, height: int) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its jpg is empty"),
        (b"<html>404</html>", "its jpg cannot be read: not a picture of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a known format"),
        (file_of(drawn_picture(), "JPEG")[:-200], "its jpg cannot be read: image file is trunc"),
        (file_of(drawn_picture())[:40], "its jpg cannot be read"),
        (png_of_size(60_000, 60_000), "its jpg cannot be read: Image size (3600000000 pixels)"),
        (png_of_size(0, 64), "its jpg"),
        (png_of_size(1, 1), "a side of less than 8 pixels: 1x1"),
        (file_of(Image.new("RGB", (7, 50))), "a side of less than 8 pixels: 7x50"),
        (file_of(Image.new("RGB", (8, 129))), "is more than 16 times the other: 8x129"),
    ],
)
def test_what_is_no_picture_is_said(content, reason):
    with pytest.raises(UnusableSample) as error:
        read_picture(content, "jpg")
    assert reason in str(error.value) and " at 0x" not in str(error.value)


@pytest.mark.parametrize(
    "error", [RuntimeError, SyntaxError, MemoryError, OverflowError, KeyError, RecursionError]
)
def test_whatever_a_decoder_raises_costs_one_picture(error, monkeypatch):
    def fail(*_, **__):
        raise error("no luck")

    monkeypatch.setattr(decoding.Image, "open", fail)
    with pytest.raises(UnusableSample, match=r"its jpg cannot be read: .*no luck"):
        read_picture(b"x", "jpg")


def test_the_size_limits_can_be_set():
    rules = EncodeConfig(min_side=64, max_aspect=2)
    with pytest.raises(UnusableSample, match="less than 64 pixels"):
        read_picture(file_of(Image.new("RGB", (63, 64))), "x", rules)
    with pytest.raises(UnusableSample, match="more than 2 times"):
        read_picture(file_of(Image.new("RGB", (64, 129))), "x", rules)
    assert read_picture(file_of(Image.new("RGB", (64, 128))), "x", rules).size == (64, 128)
