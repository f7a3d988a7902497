"""What `encode` takes from one sample of a shard: a picture or latents, and a prompt.

Pure functions of the sample's members. docs/data.md has the rules for users.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schemas.bucket import Bucket, nearest_bucket
from schemas.config import EncodeConfig
from schemas.errors import UnusableSample
from stages.pictures.decoding import read_picture
from stages.pictures.files import fit_to_bucket
from stages.texts.captions import read_caption

LATENTS = "latent.npy"
PICTURE_ENDINGS = (
    *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "avif"),
    *("gif", "bmp", "tif", "tiff", "jp2", "ppm"),
)
Shape = tuple[int, int, int]


class Taken(NamedTuple):
    """A sample that can be used."""

    bucket: Bucket
    content: np.ndarray
    """A uint8 picture (H, W, 3) of the bucket's size, or latents (C, H, W) in the stored dtype."""
    prompt: str


def read_sample(
    members: Mapping[str, bytes], rules: EncodeConfig, shapes: Mapping[Shape, Bucket]
) -> Taken:
    """Return what a sample holds; `shapes` maps the latents' shapes to the configured buckets.

    Raises UnusableSample saying what is wrong with the sample.
    """
    prompt = read_caption(members, rules)
    if LATENTS in members and rules.use_teacher_latents:
        latents = _latents(members[LATENTS], np.dtype(rules.dtype))
        if latents.shape not in shapes:
            raise UnusableSample(
                f"its {LATENTS} is of no bucket in prompts.buckets: its shape is {latents.shape}"
            )
        return Taken(shapes[latents.shape], latents, prompt)
    name = picture_member(members, rules)
    picture = read_picture(members[name], name, rules)
    bucket = nearest_bucket(*picture.size, list(shapes.values()))
    return Taken(bucket, np.asarray(fit_to_bucket(picture, bucket)), prompt)


def picture_member(members: Mapping[str, bytes], rules: EncodeConfig) -> str:
    """Return the ending of the member that is the picture.

    Raises UnusableSample if there is none, or several and no rule: the other may be a mask.
    """
    wanted = (rules.picture_member,) if rules.picture_member else PICTURE_ENDINGS
    found = [ending for ending in wanted if ending in members]
    if not found:
        names = ", ".join(sorted(members)) or "none"
        if rules.picture_member:
            raise UnusableSample(f"no {rules.picture_member} among its members: {names}")
        inner = any(name.rpartition(".")[2] in PICTURE_ENDINGS for name in members)
        hint = "; encode.picture_member may name one of them" if inner else ""
        raise UnusableSample(f"no picture among its members: {names}{hint}")
    if len(found) > 1:
        raise UnusableSample(
            f"several pictures ({', '.join(found)}) among its members; encode.picture_member "
            "chooses one"
        )
    return found[0]


def _latents(content: bytes, dtype: np.dtype) -> np.ndarray:
    """Return the array of a `.npy` file in `dtype`. Raises UnusableSample unless it is whole, and
    holds finite floats.
    """
    if not content:
        raise UnusableSample(f"its {LATENTS} is empty")
    file = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # numpy raises what its parser of headers meets
        raise UnusableSample(f"its {LATENTS} cannot be read: {error}") from error
    if file.read(1):
        raise UnusableSample(f"its {LATENTS} cannot be read: it goes on behind its array")
    if array.dtype.kind != "f":
        raise UnusableSample(f"its {LATENTS} holds no floats: {array.dtype}")
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype)
    if not np.isfinite(array).all():
        raise UnusableSample(f"its {LATENTS} is not finite in {dtype}")
    return array
