"""Encode's reader of samples on mutated tars, pictures, captions and latents: each is read, or
refused with a reason of ours.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.failures import recorded
from pipeline.base.tars import read_samples
from schemas.bucket import Bucket
from schemas.config import EncodeConfig
from schemas.errors import ArtifactError, UnusableSample
from stages.data.sample_members import Taken, read_sample
from tests.support.foreign_tars import pack
from tests.support.fuzzing import fuzzed, fuzzed_of, mutated
from tests.support.picture_files import LOSSLESS, drawn_picture, file_of, npy_of

pytestmark = pytest.mark.slow

SHAPES = {(4, 4, 4): Bucket(32, 32), (4, 2, 6): Bucket(48, 16)}
RULES = EncodeConfig()


def sound_pictures() -> dict[str, bytes]:
    """One of each format, and of the kinds with parts of their own: palette, alpha, 16 bits, EXIF,
    text, several frames.
    """
    small = drawn_picture(48, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = small.convert("RGBA")
    clear.putalpha(90)
    grey = Image.fromarray(np.arange(48 * 24, dtype=np.uint16).reshape(24, 48) * 50)
    found = {kind: file_of(small, kind) for kind in LOSSLESS}
    found |= {f"{kind} turned": file_of(small, kind, exif=exif) for kind in ("JPEG", "PNG", "AVIF")}
    found |= {f"{kind} clear": file_of(clear, kind) for kind in ("PNG", "WEBP", "GIF", "TIFF")}
    found |= {f"{kind} 16 bits": file_of(grey, kind) for kind in ("PNG", "TIFF", "PPM")}
    for kind in ("GIF", "WEBP", "PNG"):
        found[f"{kind} frames"] = file_of(small, kind, save_all=True, append_images=[clear])
    found["JPEG CMYK"] = file_of(small.convert("CMYK"), "JPEG")
    found["JPEG steps"] = file_of(small, "JPEG", progressive=True)
    found["TIFF packed"] = file_of(small, "TIFF", compression="tiff_lzw")
    return found


PICTURES = sound_pictures()


def must_be_taken_or_refused(members: dict[str, bytes]) -> None:
    try:
        taken = read_sample(members, RULES, SHAPES)
    except UnusableSample as refusal:
        reason = recorded(refusal)
        assert reason.encode() and " at 0x" not in reason
        return
    must_be_sound(taken)


def must_be_sound(taken: Taken) -> None:
    assert taken.prompt.encode() and taken.prompt == " ".join(taken.prompt.split())
    if taken.content.dtype == np.uint8:
        assert taken.content.shape == (taken.bucket.height, taken.bucket.width, 3)
    else:
        assert SHAPES[taken.content.shape] == taken.bucket
        assert taken.content.dtype == np.float16 and np.isfinite(taken.content).all()


@pytest.mark.parametrize("name", PICTURES)
@fuzzed_of(len(PICTURES))
@given(data=st.data())
def test_mutated_pictures(name, data):
    content = data.draw(mutated(PICTURES[name]))
    must_be_taken_or_refused({"jpg": content, "txt": b"a red circle"})


@fuzzed
@given(data=st.data())
def test_mutated_latents(data):
    floats = np.linspace(-3, 3, 64, dtype=data.draw(st.sampled_from(("<f2", ">f4", "<f8"))))
    content = data.draw(mutated(npy_of(floats.reshape(4, 4, 4))))
    must_be_taken_or_refused({"latent.npy": content, "txt": b"a red circle"})


TEXTS = st.text() | st.just(None) | st.floats() | st.integers() | st.lists(st.text(), max_size=2)
JSON = st.recursive(TEXTS, lambda inner: st.dictionaries(st.text(), inner, max_size=3))
RECORDS = st.dictionaries(st.sampled_from(("caption", "prompt", "text", "url")), JSON) | JSON
PICTURE = file_of(drawn_picture(32, 32))


@fuzzed
@given(data=st.data())
def test_any_captions(data):
    name = data.draw(st.sampled_from(("txt", "caption", "text", "json", "json")))
    if name == "json":
        content = json.dumps(data.draw(RECORDS)).encode()
        content = data.draw(st.one_of(st.just(content), mutated(content)))
    else:
        encoding = data.draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-16-le")))
        content = data.draw(st.text()).encode(encoding, errors="surrogatepass")
    must_be_taken_or_refused({"png": PICTURE, name: content})


MEMBERS = [
    ("0/a.png", PICTURES["PNG"]),
    ("0/a.txt", b"a red circle"),
    ("._b.jpg", b"fork"),
    ("b.jpg", PICTURES["JPEG"]),
    ("b.json", b'{"caption": "a blue ring"}'),
    ("c" * 120 + ".latent.npy", npy_of(np.zeros((4, 4, 4), np.float16))),
    ("c" * 120 + ".txt", b"a green star"),
]


def sound_tars() -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, mode in (("tar", "w"), ("gz", "w:gz"), ("bz2", "w:bz2"), ("xz", "w:xz")):
            found[name] = pack(Path(folder) / name, MEMBERS, mode).read_bytes()
    for name, layout in (("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=layout) as tar:
            for path, content in MEMBERS[: 5 if name == "ustar" else None]:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        found[name] = sink.getvalue()
    return found


TARS = sound_tars()


@pytest.mark.parametrize("name", TARS)
@fuzzed_of(len(TARS))
@given(data=st.data())
def test_mutated_tars(name, data, tmp_path_factory):
    content = data.draw(mutated(TARS[name]))
    must_be_read_or_refused(content, tmp_path_factory)


@fuzzed
@given(data=st.data())
def test_mutated_headers_of_tars(data, tmp_path_factory):
    """Changes whose checksums are right, which a reader must not take for rot."""
    content = bytearray(TARS["gnu"])
    heads = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    at = data.draw(st.sampled_from(heads))
    head = bytearray(data.draw(mutated(bytes(content[at : at + 512])))[:512].ljust(512, b"\0"))
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    content[at : at + 512] = head
    packed = data.draw(st.booleans())
    must_be_read_or_refused(
        gzip.compress(bytes(content), 1) if packed else bytes(content), tmp_path_factory
    )


def must_be_read_or_refused(content: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    path.write_bytes(content)
    try:
        for key, members, problem in read_samples(path, "x.tar"):
            assert key.encode() is not None
            if problem is None:
                must_be_taken_or_refused(members)
            else:
                assert recorded(problem).encode() and not members
    except ArtifactError as refusal:
        assert "x.tar is damaged or cut short" in str(refusal)
