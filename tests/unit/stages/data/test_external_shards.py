"""External shards are called after their sources."""

from __future__ import annotations

import re

import pytest

from stages.data.external_shards import shard_names


def test_a_name_does_not_depend_on_the_other_sources():
    urls = [f"s3://bucket/set/{i:05d}.tar" for i in range(5)]
    alone = {url: name for url in urls for name in shard_names([url])}
    assert {url: name for name, url in shard_names(urls[::-1]).items()} == alone
    assert len(set(alone.values())) == 5


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("s3://b/00012.tar", "00012"),
        ("/data/two words & more.v2.tar.gz", "two_words_more_v2"),
        ("https://h/x.tgz", "x"),
        ("file:///data/фото.tar", "_"),
        ("gs://b/" + "n" * 300 + ".tar", "n" * 60),
        ("https://h/", "h"),
    ],
)
def test_names_are_safe_in_any_store(url, stem):
    (name,) = shard_names([url])
    assert re.fullmatch(rf"shards/external/{stem}-[0-9a-f]{{10}}", name)


def test_files_of_one_name_in_two_folders_are_two_shards():
    assert len(shard_names(["s3://a/0.tar", "s3://b/0.tar", "s3://b/0.tar"])) == 2


def test_a_new_signature_is_no_new_shard():
    signed = [f"https://h/x.tar?X-Amz-Signature={s}#f" for s in ("a", "b")]
    assert [*shard_names(signed[:1])] == [*shard_names(signed[1:])]
    assert len(shard_names(["s3://b/x.tar?1", "s3://b/x.tar?2"])) == 2  # a letter of the name


def test_addresses_that_differ_in_their_query_alone_are_two_shards():
    urls = [f"https://h/download?file={i}" for i in range(2)]
    assert sorted(shard_names(urls).values()) == urls
