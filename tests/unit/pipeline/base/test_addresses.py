"""Addresses of outside files: what they name, and one sentence for each way to fail."""

from __future__ import annotations

import gzip
import os

import pytest

from pipeline.base.addresses import copied, expand, opened, shown
from schemas.errors import ArtifactError, ConfigError, ServiceUnavailable
from tests.support.web import web_server

pytestmark = pytest.mark.slow

FIELD = "encode.external"


@pytest.fixture
def shards(tmp_path):
    """A folder with three shards, and what macOS and Spark leave beside them."""
    for name in ("00000.tar", "00001.tar", "00002.tar", "._00000.tar", "_SUCCESS", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(addresses):
    return [os.path.basename(address) for address in addresses]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["{00000..00001}.tar"], ["00000.tar", "00001.tar"]),
        (["0000{0,2}.tar"], ["00000.tar", "00002.tar"]),
        (["{00000,0000[12]}.tar"], ["00000.tar", "00001.tar", "00002.tar"]),
        (["*.tar"], ["00000.tar", "00001.tar", "00002.tar"]),
        (["0000?.tar", "00001.tar", "./00001.tar"], ["00000.tar", "00001.tar", "00002.tar"]),
        ([""], ["00000.tar", "00001.tar", "00002.tar"]),
    ],
)
def test_patterns_and_folders_name_each_file_once(shards, patterns, found):
    assert names(expand([f"{shards}/{one}" for one in patterns], FIELD, (".tar",))) == found


def test_a_file_that_is_named_like_a_pattern_is_that_file(shards):
    for name in ("a[0].tar", "{x}.tar", "what?.tar", "#1.tar"):
        (shards / name).write_bytes(b"x")
        assert names(expand([str(shards / name)], FIELD)) == [name]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none.tar", "there is no file"),
        ("none*.tar", "nothing matches"),
        ("{00000..00003}.tar", "there is no file .*00003.tar"),
        ("{00000..00003.tar", "no partner"),
        ("{0..99999999999}.tar", "more than 100,000 files"),
        ("sub", "the folder .*sub holds no file that ends in .tar"),
        ("gone.tar", "is a link to"),
        ("pipe.tar", "no regular file"),
    ],
)
def test_what_names_no_file_is_refused_with_the_field(shards, pattern, said):
    (shards / "sub").mkdir()
    (shards / "gone.tar").symlink_to(shards / "nowhere")
    os.mkfifo(shards / "pipe.tar")
    with pytest.raises(ConfigError, match=said) as error:
        expand([f"{shards}/{pattern}"], FIELD, (".tar",))
    assert str(error.value).startswith(FIELD)


@pytest.mark.parametrize("patterns", [[], [" "], ["nosuch://x/*.tar"], ["memory://none/*.tar"]])
def test_addresses_that_name_nothing(patterns):
    with pytest.raises(ConfigError, match=FIELD):
        expand(patterns, FIELD)


def test_a_signed_address_is_read_and_its_signature_is_told_to_nobody(shards):
    with web_server(shards) as address:
        signed = f"{address}/00000.tar?X-Signature=ab%2Bc&X-Expires=60"
        assert expand([signed], FIELD) == [signed]
        with copied(signed, FIELD) as path:
            assert path.read_bytes() == b"00000.tar" and path.name == "00000.tar"
        with pytest.raises(ConfigError) as error:
            expand([signed.replace("00000", "none")], FIELD)
    assert "none.tar?…" in str(error.value) and "ab%2Bc" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (403, ConfigError, "no permission to read .*answers 403.*expired"),
        (404, ConfigError, "there is no file"),
        (429, ServiceUnavailable, "does not answer at the moment"),
        (503, ServiceUnavailable, "does not answer at the moment"),
    ],
)
def test_answers_of_a_web_server(shards, status, kind, said):
    with web_server(shards, {"/00001.tar": status}) as address:
        signed = f"{address}/00001.tar?Signature=secret"
        for use in (lambda: expand([signed], FIELD), lambda: _read(signed), lambda: _copy(signed)):
            with pytest.raises(kind, match=said) as error:
                use()
            assert type(error.value) is kind and "secret" not in str(error.value)


def _read(address):
    with opened(address, FIELD) as file:
        file.read()


def _copy(address):
    with copied(address, FIELD):
        pass


def test_pages_instead_of_files(shards):
    (shards / "sub").mkdir()
    with web_server(shards) as address:
        with pytest.raises(ConfigError, match=r"page of a folder.*\{00000\.\.00012\}\.tar"):
            expand([f"{address}/"], FIELD, (".tar",))
        with pytest.raises(ConfigError, match="answers with a web page"):
            expand([f"{address}/sub"], FIELD, (".tar",))
        braces = expand([f"{address}/{{00000..00002}}.tar?a=b"], FIELD, (".tar",))
    assert names(braces) == [f"0000{i}.tar?a=b" for i in range(3)]


def test_a_service_that_is_not_there_may_be_there_later():
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9/x\.tar"):
        expand(["http://127.0.0.1:9/x.tar"], FIELD)


def test_s3_without_credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for use in (lambda a: expand([a], FIELD), _read, _copy):
        with pytest.raises(ConfigError, match=r"no credentials to read s3://nobody-here/x\.tar"):
            use("s3://nobody-here/x.tar")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "p.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(1000))[:200])
    with (
        pytest.raises(ArtifactError, match=r"p\.txt\.gz is damaged or cut short"),
        opened(str(path), "prompts.sources") as file,
        gzip.open(file) as inside,
    ):
        inside.read()


def test_faults_of_our_own_are_not_explained_away(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(KeyError), opened(str(tmp_path / "x"), FIELD):
        {}["missing"]


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("https://user:word@host/a.tar?sig=x&b=c", "https://host/a.tar?…"),
        ("https://host/a.tar?token", "https://host/a.tar?…"),
        ("s3://bucket/a.tar?versionId=3", "s3://bucket/a.tar?…"),
        ("s3://bucket/a?.tar", "s3://bucket/a?.tar"),
        ("/data/what?a=b.tar", "/data/what?a=b.tar"),
    ],
)
def test_what_is_shown_of_an_address(address, seen):
    assert shown(address) == seen
