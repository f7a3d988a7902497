"""From shards to training batches without Ray: the workers of `synthesize` and `encode`, and
`LatentData`.
"""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.base.shards import read_tar, write_tar
from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from schemas.bucket import Bucket, nearest_bucket
from schemas.errors import ArtifactError
from stages import encode, prompts, synthesize
from stages.data.latent_batches import LatentData
from stages.prompts import split_of
from stages.synthesize import encode_image
from stages.teachers import open_teacher
from tests.conftest import make_tiny_config, map_in_this_process
from tests.manifests import manifest_of


def committed(store, stage, result):
    return store.commit(manifest_of(stage, result.files, details=result.details))


@pytest.fixture
def chain(tiny_sd3, tmp_path, monkeypatch):
    """Runs prompts, synthesize and encode in this process; gives the config and the artifacts."""
    map_in_this_process(monkeypatch)

    def run(**sections):
        config = make_tiny_config(tiny_sd3, tmp_path / "store", **sections)
        store, artifacts = ArtifactStore(config.store), {}
        for name, module in (("prompts", prompts), ("synthesize", synthesize), ("encode", encode)):
            context = StageContext(name, "k", config, store, dict(artifacts), lambda *a: None)
            artifacts[name] = committed(store, name, module.run(context))
        return config, artifacts

    return run


def samples_of(artifact):
    found = {}
    for entry in artifact.files("shards/", ".tar"):
        with artifact.checked(entry) as path:
            found |= dict(read_tar(path, "x"))
    return found


def test_shards_hold_picture_text_and_record_and_sidecars_every_planned_sample(chain):
    _, artifacts = chain()
    samples = samples_of(artifacts["synthesize"])
    rows = []
    for entry in artifacts["synthesize"].files("shards/", ".parquet"):
        with artifacts["synthesize"].checked(entry) as path:
            rows += pq.read_table(path).to_pylist()
    assert {row["key"] for row in rows} == set(samples)
    for row in rows:
        members = samples[row["key"]]
        assert Image.open(io.BytesIO(members["png"])).size == (row["width"], row["height"])
        assert members["txt"].decode() == row["prompt"]
        assert json.loads(members["json"])["seed"] == row["seed"]
        assert row["status"] == "ok"


def test_flat_pictures_are_recorded_as_filtered_and_broken_ones_as_failed(chain, tiny_config):
    with pytest.raises(Exception, match=r"no picture was usable.*filtered"):
        chain(synthesize={"flat_below": 200.0})
    maker = synthesize.Synthesizer(tiny_config, None, "x")
    maker.paint = lambda samples: torch.full((len(samples), 4, 8, 8), float("nan"))
    sample = {"key": "k", "prompt": "a", "seed": 1, "width": 32, "height": 32}
    assert maker._make([sample]) == [("failed", "not finite", {})]


def test_training_batches_hold_the_latents_of_their_prompts(chain):
    config, artifacts = chain(encode={"dtype": "float32"})
    data = LatentData(artifacts["encode"])
    teacher = open_teacher(config.teacher)
    samples = samples_of(artifacts["synthesize"])
    by_prompt = {members["txt"].decode(): members["png"] for members in samples.values()}
    assert sum(data.sizes.values()) == len(samples)
    for bucket, size in data.sizes.items():
        latents, conditioning = data.batch(bucket, range(size))
        width, height = Bucket.parse(bucket)
        assert (
            latents.shape == (size, 4, height // 4, width // 4) and latents.dtype == torch.float32
        )
        texts = [data.prompts[row] for row in data._buckets[bucket].prompt_rows]
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(by_prompt[t]))) for t in texts])
        torch.testing.assert_close(latents, teacher.encode_pictures(pictures), atol=0.05, rtol=0.05)
        expected = teacher.encode_prompts(texts)
        torch.testing.assert_close(
            conditioning.tokens_BLD, expected.tokens_BLD, atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(conditioning.pooled_BP, expected.pooled_BP, atol=1e-4, rtol=1e-3)
        assert conditioning.null_tokens == expected.null_tokens == 256


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


@pytest.mark.parametrize("kept", ["beside", "only"])
def test_the_teachers_own_latents_are_used_where_they_are_kept(chain, kept):
    _, artifacts = chain(synthesize={"latents": kept}, encode={"dtype": "float32"})
    samples = samples_of(artifacts["synthesize"])
    assert all(("png" in members) == (kept == "beside") for members in samples.values())
    own = {m["txt"].decode(): np.load(io.BytesIO(m["latent.npy"])) for m in samples.values()}
    data = LatentData(artifacts["encode"])
    for bucket, size in data.sizes.items():
        latents, _ = data.batch(bucket, range(size))
        texts = [data.prompts[row] for row in data._buckets[bucket].prompt_rows]
        assert np.array_equal(latents.numpy(), np.stack([own[t] for t in texts]).astype(np.float32))


def test_online_embeddings_equal_stored_ones(chain):
    config, artifacts = chain(encode={"embeddings": "online"})
    assert artifacts["encode"].manifest.details["embeddings"] == []
    data = LatentData(artifacts["encode"], open_teacher(config.teacher).encode_prompts)
    expected = open_teacher(config.teacher).encode_prompts(data.prompts[:2])
    torch.testing.assert_close(data.conditioning([0, 1]).tokens_BLD, expected.tokens_BLD)


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


def test_a_latent_file_cut_short_is_named(chain):
    _, artifacts = chain()
    entry = artifacts["encode"].files("latents/", ".npy")[0]
    path = artifacts["encode"].store.path(artifacts["encode"].name(entry.path))
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(
        ArtifactError, match=f"{entry.path} is damaged: 100 bytes instead of {entry.size}"
    ):
        LatentData(artifacts["encode"])


def test_pictures_are_scaled_to_cover_their_bucket_and_cut_in_the_middle():
    picture = Image.new("RGB", (90, 30), (10, 20, 30))
    buckets = [Bucket(32, 32), Bucket(48, 16), Bucket(16, 48)]
    assert nearest_bucket(90, 30, buckets) == Bucket(48, 16)
    assert nearest_bucket(31, 30, buckets) == Bucket(32, 32)
    assert encode.fit(picture, Bucket(32, 32)).size == (32, 32)
    same = Image.new("RGB", (32, 32))
    assert encode.fit(same, Bucket(32, 32)) is same


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
