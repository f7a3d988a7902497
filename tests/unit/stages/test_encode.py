"""Stage `encode`: which samples it takes, and why it leaves others out."""

from __future__ import annotations

import re
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.base.parquet import table_bytes
from pipeline.base.shards import write_tar
from pipeline.base.store import ArtifactStore
from pipeline.executor import make
from pipeline.observe import Observer
from pipeline.planning import Selection
from schemas.errors import ArtifactError, ServiceUnavailable
from schemas.records import ShardStats
from stages import encode
from stages.data.latent_batches import LatentData
from stages.pictures.files import encode_image
from stages.texts.identity import split_of
from tests.support.context import make_context
from tests.support.picture_files import file_of
from tests.support.samples import samples_of
from tests.support.tiny_sd3 import make_tiny_config
from tests.support.web import web_server
from tests.support.without_ray import without_ray

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("limit", "value"), [("PROMPTS_PER_SHARD", 3), ("BYTES_PER_SHARD", 3.5 * 2 * (16 * 24 + 24))]
)
def test_each_prompt_is_stored_once_in_lists_sorted_by_id(chain, monkeypatch, limit, value):
    """Their length is bounded by prompts and by the bytes of their embeddings."""
    monkeypatch.setattr(encode, limit, value)
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


def test_prompts_of_shards_are_fetched_at_once_and_come_in_order(tmp_path, monkeypatch):
    """Bug: fetch the file of each of a hundred thousand shards by itself, on each resume."""
    store, names = ArtifactStore(str(tmp_path / "store")), ["000c", "000a", "000b"]
    for name in names:
        rows = [{"prompt_id": name, "prompt": name}]
        store.write(f"artifacts/encode/k/{name}", table_bytes(rows, encode.PROMPT_COLUMNS))
    met, local = threading.Barrier(3), ArtifactStore.local

    def meet(self, name):
        met.wait(20)
        return local(self, name)

    monkeypatch.setattr(ArtifactStore, "local", meet)
    fields = {"counts": {}, "files": {}, "sizes": {}, "seconds": 0}
    done = {n: ShardStats(shard=n, **fields, details={"prompts_file": n}) for n in names}
    (tmp_path / "parts").mkdir()
    (part,) = encode._by_first_digits(make_context("encode", None, store), done, tmp_path / "parts")
    assert pq.read_table(part)["prompt"].to_pylist() == names


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


def worker_on(tar, config, tmp_path):
    """A worker for one external shard; returns it with a function that reads its sidecar."""
    store = ArtifactStore(str(tmp_path / "store"))
    external = config.encode.model_copy(update={"external": [str(tar)]})
    prompts = config.prompts.model_copy(update={"held_out_fraction": 0.0})
    config = config.model_copy(update={"encode": external, "prompts": prompts})
    worker = encode.Encoder(config, store, "out", {"shards/0": {"url": str(tar)}})
    return worker, lambda: pq.read_table(tmp_path / "store/out/shards/0.parquet").to_pylist()


GOOD = file_of(Image.new("RGB", (32, 32)))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"a"}, "no picture among its members"),
        ({"jpg": b"junk", "txt": b"a"}, "its jpg cannot be read"),
        ({"jpg": b"junk"}, "no caption (txt, caption, text or json)"),
        ({"jpg": b"junk", "txt": b"\xff\xfe"}, "its caption cannot be read"),
        ({"jpg": b"junk", "json": b"{}"}, "its json has no caption"),
        ({"jpg": GOOD, "png": GOOD, "txt": b"a"}, "several pictures (png, jpg)"),
        ({"jpg": b"x", "JPG": b"y", "txt": b"a"}, "two members of one name"),
    ],
)
def test_samples_that_cannot_be_used_say_why(tiny_config, tmp_path, members, reason):
    good = {"png": GOOD, "json": b'{"caption": "c"}'}
    write_tar(tmp_path / "x.tar", [("a", members), ("b", good)])
    worker, sidecar = worker_on(tmp_path / "x.tar", tiny_config, tmp_path)
    stats = worker("shards/0")
    assert stats.counts == {"ok": 1, "failed": 1}
    assert [row["status"] for row in sidecar()] == ["failed", "ok"]
    assert reason in sidecar()[0]["reason"]
    assert sum(stats.details["failures"].values()) == 1


def test_latents_that_the_autoencoder_spoils_are_not_stored(tiny_config, tmp_path, monkeypatch):
    """Half precision overflows where float32 does not."""
    texts = ["a red circle", "a blue ring", "a green star"]
    members = [(str(i), {"png": GOOD, "txt": text.encode()}) for i, text in enumerate(texts)]
    write_tar(tmp_path / "x.tar", members)
    worker, sidecar = worker_on(tmp_path / "x.tar", tiny_config, tmp_path)
    sound, values = worker.teacher.encode_pictures, iter((float("nan"), 0.5, 1e6))

    def spoiled(pictures):
        latents = sound(pictures)
        for picture in latents:  # in micro-batches of any size
            picture[0, 0, 0] = next(values)
        return latents

    monkeypatch.setattr(worker.teacher, "encode_pictures", spoiled)
    stats = worker("shards/0")
    assert stats.counts == {"ok": 1, "failed": 2}
    assert [row["status"] for row in sidecar()] == ["failed", "ok", "failed"]
    assert sidecar()[0]["reason"] == "the autoencoder's latents of it are not finite in float16"
    (part,) = stats.details["latents"]
    stored = np.load(tmp_path / "store/out" / part["file"])
    index = pq.read_table(tmp_path / "store/out" / part["index"]).to_pylist()
    texts = pq.read_table(tmp_path / "store/out/shards/0.texts.parquet").to_pylist()
    assert len(stored) == part["rows"] == 1 and np.isfinite(stored).all()
    assert [row["key"] for row in index] == ["1"]
    assert [row["prompt"] for row in texts] == ["a blue ring"]


def test_rules_for_other_peoples_samples_do_not_apply_to_ours(chain):
    rules = {"caption_member": "alt", "picture_member": "jpg", "min_side": 1000}
    _, artifacts = chain(encode=rules)
    counts = artifacts["encode"].manifest.counts
    assert counts["failed"] == 0 and counts["ok"] > 0


def test_each_external_sample_is_used_once_whatever_joins_or_changes(
    tiny_sd3, tmp_path, monkeypatch
):
    """Bug: number shards by their place in the listing; then a file that joins in front makes the
    second attempt take the first file twice, and itself never.
    """
    without_ray(monkeypatch)
    store = ArtifactStore(str(tmp_path / "store"))
    config = make_tiny_config(
        tiny_sd3,
        store.url,
        encode={"external": [str(tmp_path / "*.tar")]},
        prompts={"held_out_fraction": 0},
    )

    def put(name, *texts):
        members = [(f"{t}{i}", {"png": GOOD, "txt": t.encode()}) for i, t in enumerate(texts)]
        write_tar(tmp_path / name, members)

    def encoded():
        with Observer("json") as observer:
            return make(Selection(until="encode"), "encode", config, store, observer)

    put("m.tar", "one", "two")
    put("z.tar", "three")
    whole = (tmp_path / "z.tar").read_bytes()
    (tmp_path / "z.tar").write_bytes(whole[:700])
    with pytest.raises(ArtifactError, match=r"z\.tar is damaged or cut short"):
        encoded()
    (tmp_path / "z.tar").write_bytes(whole)
    put("b.tar", "four")
    put("m.tar", "one", "two", "five")
    data = LatentData(encoded())
    assert sorted(data.prompts) == ["five", "four", "one", "three", "two"]
    assert data.sizes == {"32x32": 5}


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


def test_more_failures_than_allowed_end_the_stage_with_the_commonest_reasons(refused, tmp_path):
    odd = {3: b'{"title": 5}', 4: b"[]"}
    members = [(f"{i:03d}", {"png": GOOD, "json": odd.get(i, b'{"alt": "a"}')}) for i in range(100)]
    write_tar(tmp_path / "00000.tar", members)
    external = {"external": [str(tmp_path / "00000.tar")], "caption_field": "title"}
    code, text = refused("run", "--until", "encode", encode=external)
    assert code == 1, text
    assert "encode: 100 of 100 samples (100.0%) cannot be used: its json has no title (98)" in text
    assert "its json's title is a number, not text (1)" in text and "shards name each one" in text
    found = tmp_path.glob("store/artifacts/encode/*/shards/external/00000-*.parquet")
    (sidecar,) = (path for path in found if "texts" not in path.name)
    assert pq.read_table(sidecar).num_rows == 100


def test_failures_that_are_few_are_told_in_the_manifest(chain, tmp_path):
    members = [(str(i), {"png": GOOD, "txt": b"a" if i else b""}) for i in range(10)]
    write_tar(tmp_path / "00000.tar", members)
    _, artifacts = chain(
        encode={"external": [str(tmp_path / "*.tar")]}, prompts={"held_out_fraction": 0}
    )
    manifest = artifacts["encode"].manifest
    assert manifest.details["failures"] == {"its txt is empty": 1}
    assert (manifest.counts["ok"], manifest.counts["failed"]) == (9, 1)
