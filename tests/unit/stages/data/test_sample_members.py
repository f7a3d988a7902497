"""Which member of a sample is the picture, and which latents are taken."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from schemas.bucket import Bucket
from schemas.config import EncodeConfig
from schemas.errors import UnusableSample
from stages.data.sample_members import picture_member, read_sample
from tests.support.picture_files import file_of, npy_of

SHAPES = {(4, 4, 4): Bucket(32, 32), (4, 2, 6): Bucket(48, 16)}
SOUND = np.linspace(-2, 2, 64, dtype=np.float16).reshape(4, 4, 4)


def taken(members, **rules):
    return read_sample({"txt": b"a red circle", **members}, EncodeConfig(**rules), SHAPES)


@pytest.mark.parametrize(
    ("members", "rule", "chosen"),
    [
        (("jpg", "txt", "mask.png", "seg.png", "depth.png"), None, "jpg"),
        (("webp", "json"), None, "webp"),
        (("tif", "cls"), None, "tif"),
        (("jpg", "png"), "jpg", "jpg"),
        (("image.png", "mask.png"), ".Image.PNG", "image.png"),
        (("img", "txt"), "img", "img"),  # the content says what it is
    ],
)
def test_the_picture_is_the_member_whose_whole_ending_says_so(members, rule, chosen):
    rules = EncodeConfig(picture_member=rule)
    assert picture_member(dict.fromkeys(members, b""), rules) == chosen


@pytest.mark.parametrize(
    ("members", "rule", "reason"),
    [
        (("jpg", "png"), None, r"several pictures \(png, jpg\)"),
        (("jpeg", "jpg"), None, "several pictures"),
        (("mask.png", "txt"), None, "no picture among its members: mask.png, txt; encode.picture"),
        (("jpg.txt", "txt"), None, "no picture among its members: jpg.txt, txt$"),
        (("jpg",), "png", "no png among its members: jpg"),
        ((), None, "no picture among its members: none"),
    ],
)
def test_where_the_picture_is_not_certain_none_is_taken(members, rule, reason):
    rules = EncodeConfig(picture_member=rule)
    with pytest.raises(UnusableSample, match=reason):
        picture_member(dict.fromkeys(members, b""), rules)


@pytest.mark.parametrize(
    "array",
    [
        SOUND,
        np.asfortranarray(SOUND),
        SOUND.astype(">f2"),
        SOUND.astype(np.float32),
        SOUND.astype(np.float64),
    ],
)
def test_latents_are_taken_whatever_their_order_of_bytes(array):
    bucket, content, _ = taken({"latent.npy": npy_of(array)})
    assert bucket == Bucket(32, 32) and np.array_equal(content, SOUND)
    assert content.dtype == np.float16 and content.flags.c_contiguous and content.dtype.isnative


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (npy_of(SOUND)[:100], "cannot be read"),
        (npy_of(SOUND)[:-1], "cannot be read"),
        (npy_of(SOUND) * 2, "goes on behind its array"),
        (b"\x80\x04N.", "cannot be read"),
        (npy_of(np.array([{"a": 1}]), allow_pickle=True), "cannot be read: Object arrays"),
        (npy_of(SOUND.ravel()), r"of no bucket in prompts.buckets: its shape is \(64,\)"),
        (npy_of(SOUND[None]), "of no bucket"),
        (npy_of(SOUND[:3]), "of no bucket"),
        (npy_of(SOUND[:, :3]), "of no bucket"),
        (npy_of(np.zeros((0, 4, 4), np.float16)), "of no bucket"),
        (npy_of(SOUND.astype(np.int64)), "holds no floats: int64"),
        (npy_of(SOUND.astype(np.complex64)), "holds no floats"),
        (npy_of(np.full_like(SOUND, np.nan)), "not finite in float16"),
        (npy_of(np.full((4, 4, 4), 1e6, np.float32)), "not finite in float16"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f2', 'fortran_order': False, "
         b"'shape': (4, 10000000000000, 4), }" + b" " * 42 + b"\n", "cannot be read"),
    ],
)  # fmt: skip
def test_what_are_no_latents_of_this_teacher_are_not_taken(content, reason):
    """Also where a picture lies beside them: nobody knows which of the two is right."""
    with pytest.raises(UnusableSample, match=reason) as error:
        taken({"latent.npy": content, "png": file_of(Image.new("RGB", (32, 32)))})
    assert str(error.value).startswith("its latent.npy ")


def test_latents_that_shall_not_be_used_are_not_read():
    members = {"latent.npy": b"", "png": file_of(Image.new("RGB", (90, 30)))}
    bucket, content, prompt = taken(members, use_teacher_latents=False)
    assert (bucket, content.shape, prompt) == (Bucket(48, 16), (16, 48, 3), "a red circle")
