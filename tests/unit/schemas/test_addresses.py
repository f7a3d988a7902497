"""Addresses as they are recorded and as they enter keys: without what is secret in them."""

from __future__ import annotations

import pytest

from pipeline.dag import STAGES
from schemas.addresses import public, public_text
from tests.support.tiny_sd3 import make_tiny_config

SIGNED = [
    ("https://h/x.tar?X-Amz-Algorithm=A&X-Amz-Credential=K&X-Amz-Signature=S", "https://h/x.tar"),
    ("https://h/x.tar?versionId=4&X-Amz-Security-Token=S", "https://h/x.tar?versionId=4"),
    ("https://h/x?AWSAccessKeyId=K&Signature=S&Expires=1", "https://h/x"),
    ("https://h/x?X-Goog-Signature=S&alt=media", "https://h/x?alt=media"),
    ("https://h/c/x.tar?sv=2022&sr=b&sp=r&se=2026&sig=S%3D", "https://h/c/x.tar"),
    ("https://h/x?Policy=P&Signature=S&Key-Pair-Id=K", "https://h/x"),
    ("https://h/x?q-sign-algorithm=sha1&q-ak=K&q-signature=S", "https://h/x"),
    ("https://h/x?OSSAccessKeyId=K&Expires=1&Signature=S", "https://h/x"),
    ("https://h/x?access_token=S", "https://h/x"),
    ("https://user:S@h/x?id=4", "https://h/x?id=4"),
]
PLAIN = [
    *("p/?.tar", "/data/x?Signature=S", "s3://b/{000..012}.tar", "s3://b/a?b.tar", "hf://d/x"),
    *("https://h/x?id=4&sv=5", "https://h/x", "https://h/a@b", "x.parquet", ""),
]


@pytest.mark.parametrize(("address", "shown"), SIGNED)
def test_what_is_secret_is_left_out(address, shown):
    assert public(address) == shown == public(shown)
    assert (
        public_text(f"403, url='{address}' and <{address}>") == f"403, url='{shown}' and <{shown}>"
    )


@pytest.mark.parametrize("address", PLAIN)
def test_all_else_stays(address):
    assert public(address) == address
    assert public_text(f"it says {address} is missing") == f"it says {address} is missing"


def with_addresses(tmp_path, signature: str):
    """A configuration that names every kind of outside file by a signed address."""

    def address(name: str) -> str:
        return f"https://h/{name}?X-Amz-Date={signature}&X-Amz-Signature={signature}"

    return make_tiny_config(
        tmp_path,
        tmp_path,
        prompts={"sources": [{"kind": "file", "url": address("p.txt")}]},
        encode={"external": [address("a.tar"), address("b.tar")]},
        pairs={"url": address("pairs.jsonl")},
        eval={"url": address("e.txt")},
    )


def test_a_new_signature_is_no_new_key(tmp_path):
    first, second = (with_addresses(tmp_path, signature) for signature in ("one", "two"))
    for stage in STAGES.values():
        assert stage.identity(first) == stage.identity(second)
        assert stage.key(first, []) == stage.key(second, [])
        assert "X-Amz" not in str(stage.identity(first))


def test_what_is_recorded_of_a_configuration_holds_no_signature(tmp_path):
    config = with_addresses(tmp_path, "planted")
    assert "planted" in str(config.model_dump()) and "planted" not in str(config.recorded())
    assert config.recorded()["encode"]["external"] == ["https://h/a.tar", "https://h/b.tar"]
    plain = make_tiny_config(tmp_path, tmp_path)
    assert plain.recorded() == plain.model_dump(mode="json")
