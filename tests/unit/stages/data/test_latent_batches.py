"""`LatentData`: batches from a folder, and from a remote store, fetched ahead of need and kept in a
bounded cache.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.base.parquet import table_bytes
from pipeline.base.store import Artifact, ArtifactStore
from schemas.bucket import Bucket
from schemas.errors import ArtifactError
from stages.data.latent_batches import READ_AHEAD, LatentData
from stages.data.row_files import BLOCK_BYTES
from stages.encode import PROMPT_COLUMNS, ROW_COLUMNS
from stages.ladd.backbone import Conditioning
from stages.ladd.batch_plan import BatchPlan
from stages.teachers import open_teacher
from tests.support.manifests import manifest_of
from tests.support.samples import samples_of

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(("form", "error"), [("packed", 0.0), ("packed_8bit", 0.006)])
def test_packed_embeddings_are_the_encoders(chain, form, error):
    config, artifacts = chain(encode={"embedding_format": form})
    data = LatentData(artifacts["encode"])
    found = data.conditioning(range(len(data.prompts)))
    expected = open_teacher(config.teacher).encode_prompts(data.prompts)
    tokens = expected.tokens_BLD.half()
    assert torch.equal(found.pooled_BP, expected.pooled_BP.half())
    assert found.null_tokens == expected.null_tokens and found.tokens_BLD.dtype == tokens.dtype
    difference = (found.tokens_BLD - tokens).abs().max()
    assert difference <= error * tokens.abs().max()
    stored = {
        part: sum(entry.size for entry in artifacts["encode"].files("shards/prompts/", ending))
        for part, ending in (("tokens", ".tokens.npy"), ("scales", ".scales.npy"))
    }
    if form == "packed_8bit":
        assert difference > 0
        assert 0 < stored["scales"] < stored["tokens"] < 0.75 * 2 * tokens.numel()
    else:
        assert stored["scales"] == 0


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


SIZES = {"32x32": (13, 9), "48x16": (17,)}
"""Rows of each file of each bucket."""
PROMPTS_PER_FILE = 10
WIDE = 40_000
"""Width of the token embeddings: a row of them is a block of its own or two."""


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def make_artifact(store: ArtifactStore, *, embeddings: bool = True) -> Artifact:
    """An encode artifact whose numbers tell where they come from."""
    rng = np.random.default_rng(0)
    files: dict[str, tuple[int, str]] = {}

    def write(name: str, content: bytes) -> str:
        files[name] = store.write(f"artifacts/encode/k/{name}", content)
        return name

    count = sum(sum(rows) for rows in SIZES.values())
    ids = [f"{i:016x}" for i in range(count)]
    shuffled = list(rng.permutation(ids))
    buckets: dict[str, list[dict]] = {}
    for bucket_name, parts in SIZES.items():
        width, height = (int(side) // 4 for side in bucket_name.split("x"))
        for number, rows in enumerate(parts):
            base = f"latents/{bucket_name}/{number:06d}"
            latents = rng.standard_normal((rows, 4, height, width)).astype(np.float16)
            index = [{"key": f"{base}-{i}", "prompt_id": shuffled.pop()} for i in range(rows)]
            part = {"file": write(f"{base}.npy", npy(latents)), "rows": rows}
            part["index"] = write(f"{base}.parquet", table_bytes(index, ROW_COLUMNS))
            buckets.setdefault(bucket_name, []).append(part)
    lists, stored = [], []
    for at in range(0, count, PROMPTS_PER_FILE):
        part = ids[at : at + PROMPTS_PER_FILE]
        rows = [{"prompt_id": i, "prompt": f"prompt {i}"} for i in part]
        lists.append(write(f"prompts/{at}.parquet", table_bytes(rows, PROMPT_COLUMNS)))
        tokens = np.arange(at, at + len(part), dtype=np.float16)[:, None, None]
        tokens = np.broadcast_to(tokens, (len(part), 1, WIDE))
        pooled = rng.standard_normal((len(part), 3)).astype(np.float16)
        stored.append(
            {
                "tokens": write(f"prompts/{at}.tokens.npy", npy(tokens)),
                "pooled": write(f"prompts/{at}.pooled.npy", npy(pooled)),
            }
        )
    return store.commit(
        manifest_of(
            "encode",
            files,
            details={
                "buckets": buckets,
                "prompts": lists,
                "embeddings": stored if embeddings else [],
                "null_tokens": 5,
            },
        )
    )


@pytest.fixture
def local(tmp_path) -> Artifact:
    return make_artifact(ArtifactStore(str(tmp_path / "store")))


@pytest.fixture
def remote() -> Artifact:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    yield make_artifact(store)
    store.filesystem.rm(store.root, recursive=True)


class Watched:
    """Stands before a file system's `cat_ranges`: counts what is fetched, and can be cut off."""

    def __init__(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, self.requests, self.is_cut, self.threads = 0, 0, False, set()
        self._fetch = artifact.store.filesystem.cat_ranges
        monkeypatch.setattr(artifact.store.filesystem, "cat_ranges", self.cat_ranges)

    def cat_ranges(self, paths, starts, stops, **options):
        if self.is_cut:
            raise ConnectionError("the network is gone")
        self.requests += 1
        self.bytes += sum(stop - start for start, stop in zip(starts, stops, strict=True))
        self.threads.add(threading.current_thread().name)
        return self._fetch(paths, starts, stops, **options)

    def wait_until_quiet(self) -> None:
        """Returns when nothing has been fetched for a while."""
        seen, since = self.requests, time.monotonic()
        while time.monotonic() - since < 0.3:
            time.sleep(0.02)
            if self.requests != seen:
                seen, since = self.requests, time.monotonic()


def plan_of(data: LatentData) -> BatchPlan:
    return BatchPlan(data.sizes, 4, 0)


def wanted(plan: BatchPlan, steps: range):
    return (plan.batch(step) for step in steps)


def assert_equal(found, expected) -> None:
    latents, conditioning = found
    assert latents.dtype == torch.float16
    assert torch.equal(latents, expected[0])
    assert torch.equal(conditioning.tokens_BLD, expected[1].tokens_BLD)
    assert torch.equal(conditioning.pooled_BP, expected[1].pooled_BP)
    assert conditioning.null_tokens == expected[1].null_tokens == 5


def test_batches_from_a_remote_store_are_those_of_a_folder(local, remote):
    near, far = LatentData(local), LatentData(remote)
    assert near.sizes == far.sizes == {name: sum(rows) for name, rows in SIZES.items()}
    for bucket_name, size in near.sizes.items():
        rows = list(range(size))[::-1]
        assert_equal(far.batch(bucket_name, rows), near.batch(bucket_name, rows))
    assert near.prompts == far.prompts


def test_every_row_of_a_large_embedding_is_fetched_alone(remote, monkeypatch):
    data, watched = LatentData(remote), Watched(remote, monkeypatch)
    tokens = data.conditioning([7, 23]).tokens_BLD
    assert tokens[:, 0, 0].tolist() == [7, 23]
    row = WIDE * 2
    per_block = BLOCK_BYTES // row
    assert watched.bytes <= 2 * per_block * row + 2 * PROMPTS_PER_FILE * 3 * 2


def test_an_artifact_that_fits_is_fetched_once(remote, monkeypatch):
    data, watched = LatentData(remote), Watched(remote, monkeypatch)
    plan = plan_of(data)
    for step in range(4 * plan.batches_per_epoch):
        data.batch(*plan.batch(step))
    fetched = watched.bytes
    assert fetched <= sum(entry.size for entry in remote.manifest.files if "npy" in entry.path)
    for step in range(plan.batches_per_epoch):
        data.batch(*plan.batch(step))
    assert watched.bytes == fetched


@pytest.mark.parametrize("limit", [0, 100_000, 1_500_000])
def test_a_cache_that_is_too_small_stays_small_and_right(local, remote, monkeypatch, limit):
    near, far = LatentData(local), LatentData(remote, cache_bytes=limit)
    watched = Watched(remote, monkeypatch)
    plan = plan_of(near)
    for step in range(3 * plan.batches_per_epoch):
        assert_equal(far.batch(*plan.batch(step)), near.batch(*plan.batch(step)))
        assert far._cache.held <= limit
        assert os.fstat(far._cache._file.fileno()).st_size <= limit
    total = sum(entry.size for entry in remote.manifest.files if "npy" in entry.path)
    assert watched.bytes > total, "it cannot have held everything"


def test_the_next_batches_are_there_when_the_store_is_gone(remote, monkeypatch):
    """They were read while the first was worked on: training does not wait for the store."""
    data, watched = LatentData(remote, cache_bytes=0), Watched(remote, monkeypatch)
    plan = plan_of(data)
    expected = [data.batch(*plan.batch(step)) for step in range(READ_AHEAD + 1)]
    watched.threads.clear()
    with closing(data.ahead(wanted(plan, range(20)))) as batches:
        first = next(batches)
        watched.wait_until_quiet()
        watched.is_cut = True
        found = [first, *(next(batches) for _ in range(READ_AHEAD))]
        for (name, *batch), (bucket_name, _), wanted_batch in zip(
            found, wanted(plan, range(20)), expected, strict=False
        ):
            assert name == bucket_name
            assert_equal(batch, wanted_batch)
        with pytest.raises(ConnectionError, match="network is gone"):
            list(batches)
    assert all(name.startswith("read-ahead") for name in watched.threads)


def test_no_more_is_read_ahead_than_asked(remote, monkeypatch):
    data, watched = LatentData(remote, cache_bytes=0), Watched(remote, monkeypatch)
    plan = plan_of(data)
    data.batch(*plan.batch(0))
    each = watched.requests
    with closing(data.ahead(wanted(plan, range(20)), depth=2)) as batches:
        next(batches)
        watched.wait_until_quiet()
        assert watched.requests == each + 3 * each
    watched.wait_until_quiet()
    assert watched.requests == 4 * each
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_a_resumed_reader_goes_on_in_the_middle_of_an_epoch(local, remote):
    near, far = LatentData(local), LatentData(remote)
    plan = plan_of(near)
    middle = plan.batches_per_epoch // 2 + plan.batches_per_epoch
    steps = range(middle, middle + plan.batches_per_epoch)
    resumed = list(far.ahead(wanted(plan_of(far), steps)))
    assert len(resumed) == len(steps)
    for step, (name, *batch) in zip(steps, resumed, strict=True):
        bucket_name, rows = plan.batch(step)
        assert name == bucket_name
        assert_equal(batch, near.batch(bucket_name, rows))


def test_prompts_are_encoded_when_their_batch_has_its_turn(tmp_path):
    artifact = make_artifact(ArtifactStore(str(tmp_path / "store")), embeddings=False)
    seen: list[tuple[str, list[str]]] = []

    def encode(prompts):
        seen.append((threading.current_thread().name, list(prompts)))
        return Conditioning(torch.zeros(len(prompts), 1, 2), torch.zeros(len(prompts), 2), 5)

    data = LatentData(artifact, encode)
    plan = plan_of(data)
    with closing(data.ahead(wanted(plan, range(6)))) as batches:
        for number in range(1, 4):
            next(batches)
            assert len(seen) == number
    assert {name for name, _ in seen} == {threading.current_thread().name}
    bucket_name, rows = plan.batch(0)
    assert seen[0][1] == [data.prompts[row] for row in data._buckets[bucket_name].prompt_rows[rows]]


def test_a_remote_file_that_is_cut_short_or_gone_is_named(remote):
    entry = remote.files("latents/", ".npy")[0]
    path, filesystem = remote.store.path(remote.name(entry.path)), remote.store.filesystem
    content = filesystem.cat_file(path)
    filesystem.pipe_file(path, content[:-7])
    with pytest.raises(ArtifactError, match=rf"{entry.path} has {entry.size - 7} bytes instead"):
        LatentData(remote)
    filesystem.rm_file(path)
    with pytest.raises(ArtifactError, match=rf"{entry.path} is missing.*artifacts repair encode"):
        LatentData(remote)
    filesystem.pipe_file(path, b"x" * entry.size)
    with pytest.raises(ArtifactError, match=rf"{entry.path} is not a readable \.npy file"):
        LatentData(remote)


def test_a_remote_file_that_shrinks_while_training_is_named(remote):
    data = LatentData(remote)
    entry = remote.files("latents/32x32/", ".npy")[0]
    path, filesystem = remote.store.path(remote.name(entry.path)), remote.store.filesystem
    filesystem.pipe_file(path, filesystem.cat_file(path)[:-7])
    with pytest.raises(ArtifactError, match=r"latents/32x32/000000\.npy is damaged"):
        data.batch("32x32", [0])


def test_a_damaged_index_is_named(remote):
    entry = remote.files("latents/", ".parquet")[0]
    path, filesystem = remote.store.path(remote.name(entry.path)), remote.store.filesystem
    filesystem.pipe_file(path, b"x" * entry.size)
    with pytest.raises(ArtifactError, match=rf"{entry.path} is damaged"):
        LatentData(remote)


def test_the_copies_have_no_name_that_a_killed_worker_could_leave_behind(
    remote, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = LatentData(remote)
    data.batch("32x32", range(8))
    assert data._cache.held > 0
    assert list(tmp_path.iterdir()) == []
    data.close()


def test_batches_from_s3_are_those_of_a_folder(bucket, local):
    far = LatentData(make_artifact(ArtifactStore(bucket)), cache_bytes=1_500_000)
    near = LatentData(local)
    plan = plan_of(near)
    steps = range(2 * plan.batches_per_epoch)
    with closing(far.ahead(wanted(plan, steps))) as batches:
        for step, (_, *batch) in zip(steps, batches, strict=True):
            assert_equal(batch, near.batch(*plan.batch(step)))
    assert 0 < far._cache.held <= 1_500_000


def test_a_folder_is_read_in_place(local, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    data = LatentData(local)
    plan = plan_of(data)
    assert len(list(data.ahead(wanted(plan, range(3))))) == 3
    assert Path(local.store.path()).is_dir()


def test_the_reading_thread_leaves_torch_to_the_training(tmp_path):
    """Bug: cast by `Tensor.float()`. Each thread that runs a parallel operation of torch has a team
    of its own; more teams than cores, and the training's sleeps between two operations.
    """

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            ran.append(str(function))
            return function(*arguments, **(options or {}))

    ran: list[str] = []
    with closing(LatentData(make_artifact(ArtifactStore(str(tmp_path / "store"))))) as data:
        with Recorder():
            latents, _, conditioning = data._read("32x32", [3, 1])
        assert set(ran) == {"aten.lift_fresh.default"}, "only what wraps an array"
        torch.testing.assert_close(latents, data.batch("32x32", [3, 1])[0])
    assert latents.dtype == conditioning.tokens_BLD.dtype == torch.float16
