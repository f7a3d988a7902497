"""Unfinished uploads on a real object store: S3 keeps their parts for ever."""

from __future__ import annotations

import pytest

from pipeline.base.store import ArtifactStore
from tests.support.command import call_here

pytestmark = pytest.mark.slow


def test_gc_aborts_the_uploads_that_killed_processes_have_left(bucket):
    store = ArtifactStore(bucket)
    call, name = store.filesystem.call_s3, bucket.removeprefix("s3://").split("/")[0]

    def uploads() -> list[str]:
        found = call("list_multipart_uploads", Bucket=name).get("Uploads", ())
        return sorted(upload["Key"] for upload in found)

    for key in ("prefix/artifacts/encode/k/big.npy", "others/big.npy"):
        started = call("create_multipart_upload", Bucket=name, Key=key)
        part = {"Bucket": name, "Key": key, "UploadId": started["UploadId"], "PartNumber": 1}
        call("upload_part", **part, Body=b"x" * 2**20)
    arguments = ["artifacts", "gc", "--preset", "shapes", "--set", f"store={bucket}"]
    done = call_here(*arguments, "--delete")
    assert "upload" not in done.stdout and len(uploads()) == 2, "they may be under way"
    done = call_here(*arguments, "--older-than", "0")
    assert "left over: unfinished upload of artifacts/encode/k/big.npy" in done.stdout
    done = call_here(*arguments, "--older-than", "0", "--delete")
    assert done.returncode == 0 and "deleted unfinished upload of" in done.stdout
    assert uploads() == ["others/big.npy"], "what others do in the bucket is not ours"
