"""A real object store: SeaweedFS, started once for each test process."""

from __future__ import annotations

import pytest

from tests.support.s3_servers import KEYS, make_bucket, seaweed_server, speak_to


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    with seaweed_server(tmp_path_factory.mktemp("weed")) as address:
        yield address


@pytest.fixture
def endpoint(seaweed):
    return seaweed


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The URL of an empty store there; the credentials are in the environment."""
    import s3fs

    speak_to(monkeypatch, endpoint, KEYS["writer"])
    yield f"s3://{make_bucket()}/prefix"
    s3fs.S3FileSystem.clear_instance_cache()
