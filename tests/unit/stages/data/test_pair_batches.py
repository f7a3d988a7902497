"""`PairData`: what preference tuning reads."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

from pipeline.base.store import ArtifactStore
from schemas.errors import ArtifactError
from stages.data.pair_batches import PairData
from stages.teachers import open_teacher
from tests.support.pairs import members_of, rows_of


def test_tuning_reads_what_was_made(drawn, tmp_path):
    config, _, made = drawn
    teacher, asked = open_teacher(config.teacher), []

    def encode(texts):
        asked.extend(texts)
        return teacher.encode_prompts(texts)

    data = PairData(made, tmp_path, encode)
    rows, members = rows_of(made), members_of(made)
    in_manifest = made.manifest.details["buckets"].items()
    counted = {
        split: {name: splits[split] for name, splits in in_manifest if split in splits}
        for split in ("train", "held_out")
    }
    assert all(counted.values()), "both splits have pairs"
    assert data.sizes == counted
    for split, buckets in data.sizes.items():
        for bucket, count in buckets.items():
            wanted = [row for row in rows if row["split"] == split and row["bucket"] == bucket]
            winners, losers, told = data.batch(split, bucket, range(count))
            expected = teacher.encode_prompts([row["prompt"] for row in wanted])
            torch.testing.assert_close(told.tokens_BLD, expected.tokens_BLD, atol=5e-3, rtol=1e-3)
            torch.testing.assert_close(told.pooled_BP, expected.pooled_BP, atol=5e-3, rtol=1e-3)
            assert told.null_tokens == expected.null_tokens
            for i, row in enumerate(wanted):
                for side, found in (("winner", winners), ("loser", losers)):
                    content = members[row["key"]][f"{side}.latent.npy"]
                    latents = np.load(io.BytesIO(content)).astype(np.float32)
                    assert torch.equal(found[i], torch.from_numpy(latents))
    assert sorted(asked) == sorted(row["prompt"] for row in rows), "each prompt once"


def test_conditioning_does_not_depend_on_what_was_read_before(drawn, tmp_path):
    config, _, made = drawn
    encode = open_teacher(config.teacher).encode_prompts
    found = []
    for name, order in (("a", (0, 3, 1)), ("b", (3,))):
        (tmp_path / name).mkdir()
        data = PairData(made, tmp_path / name, encode)
        bucket = max(data.sizes["train"], key=data.sizes["train"].__getitem__)
        for row in order:
            batch = data.batch("train", bucket, [row])
            if row == 3:
                found.append(batch[2])
    assert torch.equal(found[0].tokens_BLD, found[1].tokens_BLD)
    assert torch.equal(found[0].pooled_BP, found[1].pooled_BP)


def test_a_store_that_is_no_folder_is_read_too(drawn, tmp_path):
    config, _, made = drawn
    remote = ArtifactStore("memory://pairs-of-tuning")
    for entry in made.manifest.files:
        content = made.store.read(made.name(entry.path))
        remote.write(f"{made.folder}/{entry.path}", content)
    encode = open_teacher(config.teacher).encode_prompts
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = PairData(made, tmp_path / "here", encode)
    there = PairData(dataclasses.replace(made, store=remote), tmp_path / "there", encode)
    for ours, theirs in zip(
        here.batch("train", "32x32", [1, 0])[:2],
        there.batch("train", "32x32", [1, 0])[:2],
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_a_damaged_shard_is_named(drawn, tmp_path):
    config, _, made = drawn
    store = ArtifactStore(str(tmp_path / "copy"))
    for entry in made.manifest.files:
        content = bytearray(made.store.read(made.name(entry.path)))
        if entry.path.endswith("000001.tar"):
            content[600] ^= 1
        store.write(f"{made.folder}/{entry.path}", bytes(content))
    encode = open_teacher(config.teacher).encode_prompts
    with pytest.raises(ArtifactError, match=r"000001.tar is damaged.*--force pairs"):
        PairData(dataclasses.replace(made, store=store), tmp_path, encode)
