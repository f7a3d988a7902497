"""`ladd-pipeline doctor` on a real object store, on a folder, and on stores that lack something."""

from __future__ import annotations

import errno
import json
import os

import pytest

from pipeline.base.store import ArtifactStore
from tests.support.command import call_here
from tests.support.s3_servers import KEYS, make_bucket, moto_behind, speak_to

pytestmark = pytest.mark.slow


def doctor(store: str):
    """Exit code, what is said, and by name the outcome of each trial."""
    done = call_here("doctor", "--preset", "shapes", "--set", f"store={store}", "--json")
    assert "Traceback" not in done.stderr
    rows = json.loads(done.stdout)["trials"]
    said = [text for row in rows for text in (row["text"], row["then"] if row["text"] else "")]
    return done.returncode, " ".join([done.stderr, *said]), {r["name"]: r["outcome"] for r in rows}


def as_a_person_sees_it(store: str) -> str:
    done = call_here("doctor", "--preset", "shapes", "--set", f"store={store}")
    return " ".join((done.stdout + done.stderr).split())


def test_seaweedfs_keeps_every_promise_and_nothing_is_left(bucket):
    code, _, found = doctor(bucket)
    assert code == 0 and set(found.values()) == {"yes"}
    assert {"list in pages", "upload in parts", "create, and of many one wins"} <= set(found)
    assert set(ArtifactStore(bucket).all_files("")) == {".create-exclusive"}


def test_a_local_folder_keeps_every_promise_and_is_not_made(tmp_path):
    code, _, found = doctor(str(tmp_path / "store"))
    assert code == 0 and set(found.values()) == {"yes"} and "hard links" in found
    assert "keeps every promise" in as_a_person_sees_it(str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_folder_without_hard_links_is_said_to_be_one(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", none)
    code, _, found = doctor(str(tmp_path))
    assert code == 0 and [name for name, how in found.items() if how != "yes"] == ["hard links"]
    text = as_a_person_sees_it(str(tmp_path))
    assert "not promised, for lack of `hard links`: a power cut" in text
    assert "this store can be used" in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    code, text, found = doctor(str(tmp_path / "file" / "store"))
    assert code == 4 and found["write and read"] == "failed"
    assert {how for name, how in found.items() if name != "write and read"} == {"not tried"}
    assert "cannot be used" in text


def test_without_rights_to_write_the_first_trial_fails_and_says_so(bucket, seaweed, monkeypatch):
    speak_to(monkeypatch, seaweed, KEYS["reader"])
    code, text, found = doctor(bucket)
    assert code == 4 and found["write and read"] == "failed" and found["remove"] == "not tried"
    assert "no permission; check the folder's permissions" in text and "AWS_REQUEST" not in text


def test_a_store_that_ignores_exclusive_creation_is_found_out(monkeypatch):
    with moto_behind(lambda request: request.pop("HTTP_IF_NONE_MATCH", None) and None) as address:
        speak_to(monkeypatch, address)
        code, text, found = doctor(f"s3://{make_bucket()}/p")
    assert code == 0
    assert [name for name, how in found.items() if how != "yes"] == ["create, and of many one wins"]
    assert "8 of 8 at once were told that theirs is it" in text
    assert "start one run at a time" in text


def test_a_store_that_knows_no_checksums_is_given_the_setting_that_it_needs(monkeypatch):
    """Since 2025 botocore sends a checksum with every upload, and old stores refuse it."""

    def front(request):
        if request["REQUEST_METHOD"] == "PUT" and any("CHECKSUM" in name for name in request):
            return "501 Not Implemented"
        return None

    with moto_behind(front) as address:
        speak_to(monkeypatch, address)
        bucket = make_bucket()
        code, text, _ = doctor(f"s3://{bucket}/p")
        assert code == 4 and "works with other settings only; set in the environment" in text
        assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in text
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        speak_to(monkeypatch, address)
        code, _, found = doctor(f"s3://{bucket}/p")
        assert code == 0 and set(found.values()) == {"yes"}
