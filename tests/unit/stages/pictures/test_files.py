"""Pictures are cut to their bucket."""

from __future__ import annotations

from PIL import Image

from schemas.bucket import Bucket, nearest_bucket
from stages.pictures.files import fit_to_bucket


def test_pictures_are_scaled_to_cover_their_bucket_and_cut_in_the_middle():
    picture = Image.new("RGB", (90, 30), (10, 20, 30))
    buckets = [Bucket(32, 32), Bucket(48, 16), Bucket(16, 48)]
    assert nearest_bucket(90, 30, buckets) == Bucket(48, 16)
    assert nearest_bucket(31, 30, buckets) == Bucket(32, 32)
    assert fit_to_bucket(picture, Bucket(32, 32)).size == (32, 32)
    same = Image.new("RGB", (32, 32))
    assert fit_to_bucket(same, Bucket(32, 32)) is same
