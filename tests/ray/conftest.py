"""The store of real clusters is a real object store."""

from __future__ import annotations

import pytest

from tests.support.s3_servers import KEYS, make_bucket, seaweed_server, speak_to


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    with seaweed_server(tmp_path_factory.mktemp("weed")) as address:
        yield address


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """The URL of an empty store there; the credentials are in the environment."""
    speak_to(monkeypatch, endpoint, KEYS["writer"])
    return f"s3://{make_bucket()}/prefix"
