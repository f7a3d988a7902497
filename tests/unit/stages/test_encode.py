"""Stage `encode`: which samples it takes, and why it leaves others out."""

from __future__ import annotations

import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.base.shards import write_tar
from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError, ServiceUnavailable
from stages import encode
from stages.data.latent_batches import LatentData
from stages.pictures.files import encode_image
from stages.texts.identity import split_of
from tests.support.samples import samples_of
from tests.support.web import web_server


def test_each_prompt_is_stored_once_in_lists_sorted_by_id(chain, monkeypatch):
    monkeypatch.setattr(encode, "PROMPTS_PER_SHARD", 3)
    _, artifacts = chain()
    made, lists = artifacts["encode"], []
    for name in made.manifest.details["prompts"]:
        with made.checked(made.entry(name)) as path:
            lists.append(pq.read_table(path).to_pylist())
    assert len(lists) > 2 and {len(rows) for rows in lists[:-1]} == {3}
    ids = [row["prompt_id"] for rows in lists for row in rows]
    assert ids == sorted(set(ids))
    texts = {members["txt"].decode() for members in samples_of(artifacts["synthesize"]).values()}
    assert {row["prompt"] for rows in lists for row in rows} == texts


def test_samples_whose_prompts_are_held_out_are_not_trained_on(chain, tmp_path):
    """External data may hold what evaluation asks for."""
    texts = ["a red circle", "a blue ring", "a white cross", "a green square", "a purple triangle"]
    picture = encode_image(np.zeros((32, 32, 3), np.uint8), "png", 100)
    members = [(f"{i:09d}", {"png": picture, "txt": t.encode()}) for i, t in enumerate(texts)]
    write_tar(tmp_path / "00000.tar", members)
    external = {"external": [str(tmp_path / "00000.tar")]}
    _, artifacts = chain(encode=external, prompts={"held_out_fraction": 0.1})
    kept = {text for text in texts if split_of(text, 0.1) == "train"}
    assert 0 < len(kept) < len(texts)
    assert set(LatentData(artifacts["encode"]).prompts) == kept


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"a"}, "no picture among its members"),
        ({"jpg": b"junk", "txt": b"a"}, "its jpg cannot be read"),
        ({"jpg": b"junk"}, "no txt and no json"),
        ({"jpg": b"junk", "txt": b"\xff\xfe"}, "its caption cannot be read"),
        ({"jpg": b"junk", "json": b"{}"}, "its caption cannot be read"),
    ],
)
def test_samples_that_cannot_be_used_say_why(tiny_config, tmp_path, members, reason):
    good = io.BytesIO()
    Image.new("RGB", (32, 32)).save(good, "PNG")
    write_tar(
        tmp_path / "x.tar",
        [("a", members), ("b", {"png": good.getvalue(), "json": b'{"caption": "c"}'})],
    )
    store = ArtifactStore(str(tmp_path / "store"))
    worker = encode.Encoder(
        tiny_config, store, "out", {"shards/0": {"url": str(tmp_path / "x.tar")}}
    )
    stats = worker("shards/0")
    assert stats.counts == {"ok": 1, "failed": 1}
    rows = pq.read_table(tmp_path / "store/out/shards/0.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert reason in rows[0]["reason"]


def test_a_store_of_shards_that_nobody_knows(refused):
    code, text = refused("run", "--until", "encode", encode={"external": ["nosuch://x/*.tar"]})
    assert code == 2, text
    assert "encode.external: nosuch://x/*.tar" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "the folder .* holds no file that ends in .tar"),
        ("{00000..00012.tar", "a brace of"),
        ("{00000..00001}.tar", "there is no file .*00000.tar"),
        ("*.tar", "nothing matches"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_external_shards_that_are_not_there_are_found_before_work(
    refused, tmp_path, command, name, said
):
    code, text = refused(command, encode={"external": [f"{tmp_path}/{name}"]})
    assert code == 2, text
    assert re.search(f"encode.external: {said}", text), text


def test_shards_of_a_web_server_are_read_and_their_signature_is_not_shown(tiny_config, tmp_path):
    write_tar(tmp_path / "00000.tar", [("a", {"png": b"junk", "txt": b"a"})])
    (tmp_path / "00001.tar").write_bytes(b"not a tar" * 200)
    store = ArtifactStore(str(tmp_path / "store"))
    with web_server(tmp_path, {"/00002.tar": 503}) as address:
        urls = [f"{address}/0000{i}.tar?X-Signature=ab%2Bc" for i in range(3)]
        sources = {f"shards/{i}": {"url": url} for i, url in enumerate(urls)}
        worker = encode.Encoder(tiny_config, store, "out", sources)
        assert worker("shards/0").counts == {"ok": 0, "failed": 1}
        for shard, kind in (("shards/1", ArtifactError), ("shards/2", ServiceUnavailable)):
            with pytest.raises(kind) as error:
                worker(shard)
            assert "tar?…" in str(error.value) and "ab%2Bc" not in str(error.value)


def test_truncated_shard(refused, tmp_path):
    from pipeline.base.shards import write_tar

    write_tar(
        tmp_path / "00000.tar", [(f"{i:09d}", {"jpg": b"x" * 3000, "txt": b"a"}) for i in range(3)]
    )
    content = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[:6000])
    code, text = refused(
        "run", "--until", "encode", encode={"external": [str(tmp_path / "00000.tar")]}
    )
    assert code == 4, text
    assert "00000.tar is damaged or cut short" in text
