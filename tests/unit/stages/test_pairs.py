"""Stage `pairs`: ranking, near-ties, and pairs from files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.store import ArtifactStore
from schemas.bucket import Bucket
from schemas.errors import ConfigError, StageFailed
from stages import pairs
from stages.ladd.sampling import initial_noise, sample_consistency
from stages.pictures import samplers
from stages.pictures.student import open_student
from stages.teachers import open_teacher
from stages.texts.choice import chosen_prompts
from stages.texts.identity import HELD_OUT, seed_of
from tests.support.pairs import (
    BLUE,
    EVEN,
    RED,
    made_pairs,
    made_prompts,
    made_student,
    members_of,
    pairs_config,
    png,
    rows_of,
    write_pick_a_pic,
)

pytestmark = pytest.mark.usefixtures("stand_ins")


def test_best_and_worst_make_the_pair():
    verdict = pairs.best_and_worst(np.array([0.2, 0.9, 0.1, 0.9]), 0.5, higher_is_better=True)
    assert verdict == ("ok", None, 1, 2)
    assert pairs.best_and_worst(np.array([0.2, 0.9]), 0.5, higher_is_better=False)[2:] == (0, 1)


@pytest.mark.parametrize(("margin", "status"), [(0.25, "near_tie"), (0.2, "ok")])
def test_a_difference_of_no_more_than_the_margin_is_a_near_tie(margin, status):
    verdict = pairs.best_and_worst(np.array([0.5, 0.75]), margin, higher_is_better=True)
    assert verdict.status == status


def test_equal_scores_are_a_near_tie_without_a_margin():
    assert pairs.best_and_worst(np.ones(3), 0.0, higher_is_better=True).status == "near_tie"


def test_a_picture_without_a_score_makes_no_pair():
    verdict = pairs.best_and_worst(np.array([np.nan, 0.3, 0.9]), 0.0, higher_is_better=True)
    assert verdict[2:] == (2, 1)
    assert (
        pairs.best_and_worst(np.array([np.nan, 0.3]), 0.0, higher_is_better=True).status == "failed"
    )


def test_winner_has_the_better_score_and_its_own_seed(drawn):
    config, _, made = drawn
    rows, members = rows_of(made), members_of(made)
    assert {row["status"] for row in rows} == {"ok"}
    assert made.manifest.counts == {"ok": 14, "near_tie": 0, "failed": 0}
    assert {row["split"] for row in rows} == {"train", "held_out"}
    assert {row["bucket"] for row in rows} == {"32x32", "48x16"}
    for row in rows:
        held = members[row["key"]]
        assert set(held) == {
            *("winner.png", "loser.png", "winner.latent.npy", "loser.latent.npy", "txt", "json")
        }
        assert held["txt"].decode() == row["prompt"] and json.loads(held["json"]) == row
        for side in ("winner", "loser"):
            pixels = np.asarray(Image.open(io.BytesIO(held[f"{side}.png"])))
            assert pixels.shape == (row["height"], row["width"], 3)
            assert pixels[..., 0].mean() == pytest.approx(row[f"{side}_score"])
        assert row["winner_score"] > row["loser_score"] and row["judge"] == "layout"
        seeds = {seed_of(config.pairs.seed, row["prompt"], i, purpose="pairs") for i in range(3)}
        assert {row["winner_seed"], row["loser_seed"]} < seeds


def test_latents_are_those_of_the_pictures(drawn):
    config, _, made = drawn
    teacher = open_teacher(config.teacher)
    key, members = next(iter(members_of(made).items()))
    for side in ("winner", "loser"):
        latents = np.load(io.BytesIO(members[f"{side}.latent.npy"]))
        assert latents.dtype == np.float16
        shown = teacher.decode_latents(torch.from_numpy(latents).float()[None])[0].astype(int)
        pixels = np.asarray(Image.open(io.BytesIO(members[f"{side}.png"]))).astype(int)
        assert np.abs(shown - pixels).mean() < 1, key


def test_a_picture_does_not_depend_on_its_micro_batch_or_shard(drawn, tiny_sd3, tmp_path):
    made = drawn[2]
    change = {"prompts_per_shard": 6, "micro_batch": 2, "prompts": 9}
    other = pairs_config(tiny_sd3, tmp_path / "store", pairs=change)
    found = {row["key"]: row for row in rows_of(made_pairs(other, made_prompts(other)))}
    assert len(found) == 9
    for row in rows_of(made):
        if row["key"] in found:
            assert found[row["key"]]["winner_seed"] == row["winner_seed"]
            assert found[row["key"]]["winner_score"] == pytest.approx(row["winner_score"], abs=1)


def test_two_runs_give_the_same_bytes(drawn, tiny_sd3, tmp_path):
    made = drawn[2]
    other = pairs_config(tiny_sd3, tmp_path / "store")
    again = made_pairs(other, made_prompts(other))
    assert again.manifest.files == made.manifest.files
    assert {f.path.split(".")[-1] for f in made.manifest.files} == {"tar", "parquet"}


def test_near_ties_are_recorded_and_counted(drawn, tiny_sd3, tmp_path):
    made = drawn[2]
    gaps = sorted(row["winner_score"] - row["loser_score"] for row in rows_of(made))
    margin = (gaps[4] + gaps[5]) / 2
    config = pairs_config(tiny_sd3, tmp_path / "store", pairs={"margin": margin})
    tied = made_pairs(config, made_prompts(config))
    assert tied.manifest.counts == {"ok": 9, "near_tie": 5, "failed": 0}
    dropped = [row for row in rows_of(tied) if row["status"] == "near_tie"]
    assert len(dropped) == 5 and all("not by more than" in row["reason"] for row in dropped)
    assert not {row["key"] for row in dropped} & set(members_of(tied))
    in_buckets = [sum(splits.values()) for splits in tied.manifest.details["buckets"].values()]
    assert sum(in_buckets) == 9


def test_no_usable_pair_is_an_error(tiny_sd3, tmp_path):
    config = pairs_config(tiny_sd3, tmp_path / "store", pairs={"margin": 300, "prompts": 2})
    with pytest.raises(StageFailed, match=r"no pair was usable.*'near_tie': 2.*pairs\.margin"):
        made_pairs(config, made_prompts(config))


def test_pictures_that_are_not_finite_are_recorded(drawn, tmp_path, monkeypatch):
    config, planned, _ = drawn

    def broken_sampler(teacher, net, device, how):
        def draw(batch):
            shape = teacher.latent_shape(Bucket(batch[0]["width"], batch[0]["height"]))
            return torch.full((len(batch), *shape), torch.nan)

        return draw

    monkeypatch.setattr(samplers, "teacher_sampler", broken_sampler)
    plan = {"shards/pairs/000000": chosen_prompts(planned, 2, "pairs")}
    store = ArtifactStore(str(tmp_path))
    stats = pairs.PairSampler(config, store, "a", plan, None)("shards/pairs/000000")
    assert stats.counts == {"ok": 0, "near_tie": 0, "failed": 2}


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({}, {}),
        (
            {"teacher_steps": 5, "guidance_scale": 1.5},
            {"steps": 5, "guidance_scale": 1.5, "guidance_range": None},
        ),
    ],
)
def test_the_teacher_draws_as_told_else_as_for_the_training_data(
    tiny_sd3, tmp_path, monkeypatch, own, changed
):
    making = {"steps": 2, "guidance_range": [3.0, 6.0], "negative_prompt": "grey"}
    config = pairs_config(tiny_sd3, tmp_path, pairs=own, synthesize=making)
    found = []
    monkeypatch.setattr(samplers, "teacher_sampler", lambda *a: found.append(a[3]))
    _ = pairs.PairSampler(config, ArtifactStore(str(tmp_path)), "a", {}, None)._sample
    assert found == [config.synthesize.model_copy(update=changed)]


def test_the_student_draws_on_its_own_grid(tiny_sd3, tmp_path):
    config = pairs_config(
        tiny_sd3, tmp_path / "store", pairs={"model": "student", "prompts": 2, "micro_batch": 6}
    )
    planned, student = made_prompts(config), made_student(config)
    made = made_pairs(config, planned, student)
    net, grid = open_student(Path(student.store.path(student.folder, "model")))
    assert grid == EVEN
    teacher = open_teacher(config.teacher)
    members = members_of(made)
    for row in rows_of(made):
        shape = teacher.latent_shape(Bucket(row["width"], row["height"]))
        noise, generators = initial_noise([row["winner_seed"]], shape)
        told = teacher.encode_prompts([row["prompt"]])
        expected = sample_consistency(net, noise, told, [1.0, 0.25], generators)[0]
        found = np.load(io.BytesIO(members[row["key"]]["winner.latent.npy"]))
        torch.testing.assert_close(torch.from_numpy(found).float(), expected, atol=5e-3, rtol=5e-3)


def test_pick_a_pic_columns_are_read(tiny_sd3, tmp_path):
    url = write_pick_a_pic(
        tmp_path / "pick.parquet",
        [
            ("a  red ring", RED, BLUE, 1.0, 0.0),
            ("a green square", RED, BLUE, 0.0, 1.0),
            ("whatever", RED, BLUE, 0.5, 0.5),
            ("broken", RED, b"no picture", 1.0, 0.0),
            ("absent", RED, None, 1.0, 0.0),
            ("unlabelled", RED, BLUE, None, 1.0),
            (None, RED, BLUE, 1.0, 0.0),
            ("", RED, BLUE, 1.0, 0.0),
            ("uneven", RED, png((0, 0, 0), (90, 30)), 1.0, 0.0),
            ("a blue ring", RED, BLUE, 1.0, 0.0),
        ],
    )
    config = pairs_config(tiny_sd3, tmp_path / "store", pairs={"url": url})
    made = made_pairs(config, made_prompts(config))
    assert made.manifest.counts == {"ok": 2, "near_tie": 1, "failed": 6, "filtered": 1}
    rows = rows_of(made)
    expected = ["ok", "ok", "near_tie", *["failed"] * 6, "filtered"]
    assert [row["status"] for row in rows] == expected
    assert rows[-1]["reason"] == HELD_OUT
    reasons = [row["reason"] for row in rows[3:-1]]
    for reason, part in zip(
        reasons,
        (
            "its loser cannot be read",
            "no jpg_1",
            "no label_0",
            "no caption",
            "empty",
            "two buckets",
        ),
        strict=True,
    ):
        assert part in reason
    assert [row["prompt"] for row in rows[:2]] == ["a red ring", "a green square"]
    assert (rows[0]["winner_score"], rows[0]["loser_score"]) == (1.0, 0.0)
    assert {row["judge"] for row in rows} == {"pick.parquet"}
    members = members_of(made)
    for row, color in zip(rows[:2], ((250, 10, 10), (10, 10, 250)), strict=True):
        picture = Image.open(io.BytesIO(members[row["key"]]["winner.png"]))
        assert picture.size == (32, 32) and picture.getpixel((5, 5)) == color
    teacher = open_teacher(config.teacher)
    expected = teacher.encode_pictures(np.full((1, 32, 32, 3), (250, 10, 10), np.uint8))[0]
    latents = np.load(io.BytesIO(members[rows[0]["key"]]["winner.latent.npy"]))
    torch.testing.assert_close(torch.from_numpy(latents).float(), expected, atol=2e-2, rtol=2e-2)


def test_jsonl_finds_pictures_beside_it_by_path_and_by_url(tiny_sd3, tmp_path):
    import fsspec

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(RED)
    (tmp_path / "blue.png").write_bytes(png((10, 10, 250), (96, 30)))
    (tmp_path / "wide.png").write_bytes(png((250, 10, 10), (96, 30)))
    memory = fsspec.filesystem("memory")
    memory.pipe("/pairs-test/blue.png", BLUE)
    rows = [
        {"prompt": "one", "winner": "pictures/red.png", "loser": "memory://pairs-test/blue.png"},
        {
            "prompt": "two",
            "winner": str(tmp_path / "blue.png"),
            "loser": f"file://{tmp_path}/wide.png",
            "judge": "anna",
        },
        {"prompt": "three", "winner": "pictures/none.png", "loser": "wide.png"},
    ]
    lines = [json.dumps(row) for row in rows]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join([lines[0], "", lines[1], "{oops", '{"prompt": "x"}', lines[2]]))
    config = pairs_config(
        tiny_sd3, tmp_path / "store", pairs={"url": str(path), "prompts_per_shard": 2}
    )
    made = made_pairs(config, made_prompts(config))
    found = rows_of(made)
    assert [row["status"] for row in found] == ["ok", "ok", "failed", "failed", "failed"]
    assert [row["judge"] for row in found[:2]] == ["votes.jsonl", "anna"]
    assert [row["bucket"] for row in found[:2]] == ["32x32", "48x16"]
    for row, part in zip(
        found[2:], ("not JSON", "no text field 'winner'", "its winner cannot be read"), strict=True
    ):
        assert part in row["reason"]


def test_rows_that_cannot_be_used_cost_one_pair_each(tiny_sd3, tmp_path, monkeypatch):
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "blue.png").write_bytes(BLUE)
    sides = {"winner": "red.png", "loser": "blue.png"}
    rows = [
        {"prompt": "one", **sides, "judge": "\udc80 a lone surrogate"},
        {"prompt": "one", **sides},
        {"prompt": "NaN", **sides},
        {"prompt": "\u200b\ufeff", **sides},
        {"prompt": "one", "winner": "\udc80.png", "loser": "blue.png"},
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    encode = pairs.PairReader._encode

    def spoiled(self, pictures):
        latents = encode(self, pictures)
        latents[3, 0, 0, 0] = float("inf")  # the loser of the second pair
        return latents

    monkeypatch.setattr(pairs.PairReader, "_encode", spoiled)
    config = pairs_config(tiny_sd3, tmp_path / "store", pairs={"url": str(path)})
    made = made_pairs(config, made_prompts(config))
    found = rows_of(made)
    assert [row["status"] for row in found] == ["ok", *["failed"] * 4]
    assert found[0]["judge"] == "a lone surrogate"
    for row, part in zip(
        found[1:], ("not finite", "missing value", "its prompt is empty", "'winner'"), strict=True
    ):
        assert part in row["reason"]
    assert list(members_of(made)) == [found[0]["key"]]


def test_check_refuses_before_anything_starts(tiny_sd3, tmp_path):
    absent = pairs_config(tiny_sd3, tmp_path, pairs={"url": str(tmp_path / "none.jsonl")})
    with pytest.raises(ConfigError, match=r"pairs.url: there is no file .*none.jsonl"):
        pairs.check(absent)
    steps = pairs_config(tiny_sd3, tmp_path, pairs={"student_steps": 5})
    with pytest.raises(ConfigError, match=r"pairs.student_steps is 5.* takes 4 or 2 or 1"):
        pairs.check(steps)
    unknown = pairs_config(tiny_sd3, tmp_path, pairs={"reward": {"name": "layuot"}})
    with pytest.raises(ConfigError, match=r"pairs.reward.name.*'layuot'; did you mean layout"):
        pairs.check(unknown)
