"""Stage `pairs`: ranking, near-ties, files of pairs, and what tuning reads of them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.base.shards import read_tar
from pipeline.base.stage import StageContext, StageResult
from pipeline.base.store import Artifact, ArtifactStore
from schemas.bucket import Bucket
from schemas.config import PipelineConfig, ScoreConfig
from schemas.errors import ArtifactError, ConfigError, StageFailed
from schemas.report import ScoreCard
from stages import pairs, prompts
from stages.data.pair_batches import PairData
from stages.data.pair_files import parts_of, read_part
from stages.ladd.sampling import initial_noise, sample_consistency
from stages.pictures.student import open_student
from stages.prompts import HELD_OUT, hash_fraction, seed_of
from stages.teachers import open_teacher
from tests.conftest import make_tiny_config
from tests.manifests import manifest_of

GRID = [1.0, 0.75, 0.5, 0.25]


class ChannelMean:
    """Scores a picture by the mean of one of its colours."""

    def __init__(self, channel: int, *, higher_is_better: bool = True) -> None:
        self.channel = channel
        self.card = ScoreCard(
            title="mean of a colour",
            explanation="The mean of one colour.",
            low=0,
            high=255,
            higher_is_better=higher_is_better,
            licence="none",
            weights="none",
        )

    def judge(self, pictures_BHW3, prompts):
        assert pictures_BHW3.dtype == np.uint8 and len(pictures_BHW3) == len(prompts)
        return pictures_BHW3[..., self.channel].mean((1, 2)).astype(np.float64)


def open_stand_in(config: ScoreConfig, device: torch.device) -> ChannelMean:
    return ChannelMean({"layout": 0, "attributes": 1}[config.name])


def put_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """Scores of the test's own, and no question to Ray."""
    patch.setattr(pairs, "open_score", open_stand_in)
    patch.setattr(pairs, "worker_devices", lambda pool: 1.0)


def pairs_config(model: Path, store: Path, **sections) -> PipelineConfig:
    wanted = {
        "prompts": 14,
        "pictures_per_prompt": 3,
        "prompts_per_shard": 4,
        "micro_batch": 5,
        "held_out_fraction": 0.3,
        "student_steps": 2,
        "reward": {"name": "layout"},
    }
    sections["pairs"] = wanted | sections.get("pairs", {})
    return make_tiny_config(model, store, **sections)


def context_of(stage: str, config: PipelineConfig, **inputs: Artifact) -> StageContext:
    store = ArtifactStore(config.store)
    return StageContext(stage, "k", config, store, inputs, lambda *a: None)


def commit(context: StageContext, result: StageResult) -> Artifact:
    """What the engine makes of a stage's result."""
    made = {"counts": result.counts, "metrics": result.metrics, "details": result.details}
    return context.store.commit(manifest_of(context.stage, result.files, key=context.key, **made))


def made_prompts(config: PipelineConfig) -> Artifact:
    context = context_of("prompts", config)
    return commit(context, prompts.run(context))


def made_student(config: PipelineConfig) -> Artifact:
    """The teacher's own weights, somewhat moved, as a `distill` artifact."""
    context = context_of("distill", config)
    folder = Path(context.store.path(context.folder, "model"))
    generator = torch.Generator().manual_seed(3)

    def move(backbone):
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    open_teacher(config.teacher).save_student(folder, move, GRID)
    files = {
        f"model/{path.relative_to(folder).as_posix()}": context.store.write(
            f"{context.folder}/model/{path.relative_to(folder).as_posix()}", path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return commit(context, StageResult(files, details={"model": "model", "grid": GRID}))


def made_pairs(config: PipelineConfig, planned: Artifact, student: Artifact | None = None):
    """Every shard made by one worker in this process, then the stage's own result."""
    context = context_of("pairs", config, prompts=planned)
    if config.pairs.url is None:
        rows = pairs.chosen_prompts(planned, config.pairs.prompts, "pairs")
        plan, work = pairs._plan(rows, config.pairs.prompts_per_shard), pairs.PairSampler
    else:
        parts = parts_of(config.pairs.url, config.pairs.prompts_per_shard)
        plan, work = {pairs._shard(i): p for i, p in enumerate(parts)}, pairs.PairReader
    worker = work(config, context.store, context.folder, plan, student)
    for shard in sorted(plan, reverse=True):
        worker(shard)
    return commit(context, pairs.run(context))


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    put_stand_ins(monkeypatch)


@pytest.fixture(scope="module")
def drawn(tiny_sd3, tmp_path_factory):
    """Pairs drawn by the tiny teacher: configuration, prompts and pairs."""
    config = pairs_config(tiny_sd3, tmp_path_factory.mktemp("pairs") / "store")
    planned = made_prompts(config)
    with pytest.MonkeyPatch.context() as patch:
        put_stand_ins(patch)
        return config, planned, made_pairs(config, planned)


def rows_of(artifact: Artifact) -> list[dict]:
    folder = Path(artifact.store.path(artifact.folder))
    return [
        row
        for shard in artifact.manifest.details["shards"]
        for row in pq.read_table(folder / f"{shard}.parquet").to_pylist()
    ]


def members_of(artifact: Artifact) -> dict[str, dict[str, bytes]]:
    folder = Path(artifact.store.path(artifact.folder))
    return {
        key: members
        for shard in artifact.manifest.details["shards"]
        for key, members in read_tar(folder / f"{shard}.tar", shard)
    }


def test_best_and_worst_make_the_pair():
    verdict = pairs.rank(np.array([0.2, 0.9, 0.1, 0.9]), 0.5, higher_is_better=True)
    assert verdict == ("ok", None, 1, 2)
    assert pairs.rank(np.array([0.2, 0.9]), 0.5, higher_is_better=False)[2:] == (0, 1)


@pytest.mark.parametrize(("margin", "status"), [(0.25, "near_tie"), (0.2, "ok")])
def test_a_difference_of_no_more_than_the_margin_is_a_near_tie(margin, status):
    verdict = pairs.rank(np.array([0.5, 0.75]), margin, higher_is_better=True)
    assert verdict.status == status


def test_equal_scores_are_a_near_tie_without_a_margin():
    assert pairs.rank(np.ones(3), 0.0, higher_is_better=True).status == "near_tie"


def test_a_picture_without_a_score_makes_no_pair():
    verdict = pairs.rank(np.array([np.nan, 0.3, 0.9]), 0.0, higher_is_better=True)
    assert verdict[2:] == (2, 1)
    assert pairs.rank(np.array([np.nan, 0.3]), 0.0, higher_is_better=True).status == "failed"


def test_prompts_are_the_first_of_training_by_hash(drawn):
    _, planned, _ = drawn
    every = pairs.chosen_prompts(planned, 1000, "pairs")
    folder = Path(planned.store.path(planned.folder))
    held_out = set(pq.read_table(folder / "held_out.parquet")["prompt"].to_pylist())
    texts = [row["prompt"] for row in every]
    assert held_out and not held_out & set(texts)
    assert len(set(texts)) == len(texts) == planned.manifest.counts["train"]
    assert texts == sorted(texts, key=lambda text: hash_fraction(text, "pairs"))
    assert pairs.chosen_prompts(planned, 5, "pairs") == every[:5]
    last = frozenset(row["prompt_id"] for row in every[:4])
    assert pairs.chosen_prompts(planned, 1000, "pairs", last) == every[4:] + every[:4]


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

    def broken_painter(teacher, net, device, steps, guidance):
        def paint(batch):
            shape = teacher.latent_shape(Bucket(batch[0]["width"], batch[0]["height"]))
            return torch.full((len(batch), *shape), torch.nan)

        return paint

    monkeypatch.setattr(pairs, "teacher_sampler", broken_painter)
    plan = {"shards/pairs/000000": pairs.chosen_prompts(planned, 2, "pairs")}
    store = ArtifactStore(str(tmp_path))
    stats = pairs.PairSampler(config, store, "a", plan, None)("shards/pairs/000000")
    assert stats.counts == {"ok": 0, "near_tie": 0, "failed": 2}


@pytest.mark.parametrize(
    ("own", "expected"), [({}, (2, 3.0)), ({"teacher_steps": 5, "guidance_scale": 1.0}, (5, 1.0))]
)
def test_the_teacher_draws_as_told_else_as_for_the_training_data(
    tiny_sd3, tmp_path, monkeypatch, own, expected
):
    making = {"steps": 2, "guidance_scale": 3.0}
    config = pairs_config(tiny_sd3, tmp_path, pairs=own, synthesize=making)
    found = []
    monkeypatch.setattr(pairs, "teacher_sampler", lambda *a: found.append(a[3:]))
    _ = pairs.PairSampler(config, ArtifactStore(str(tmp_path)), "a", {}, None)._paint
    assert found == [expected]


def test_the_student_draws_on_its_own_grid(tiny_sd3, tmp_path):
    config = pairs_config(
        tiny_sd3, tmp_path / "store", pairs={"model": "student", "prompts": 2, "micro_batch": 6}
    )
    planned, student = made_prompts(config), made_student(config)
    made = made_pairs(config, planned, student)
    net, grid = open_student(Path(student.store.path(student.folder, "model")))
    assert grid == GRID
    teacher = open_teacher(config.teacher)
    members = members_of(made)
    for row in rows_of(made):
        shape = teacher.latent_shape(Bucket(row["width"], row["height"]))
        noise, generators = initial_noise([row["winner_seed"]], shape)
        told = teacher.encode_prompts([row["prompt"]])
        expected = sample_consistency(net, noise, told, [1.0, 0.25], generators)[0]
        found = np.load(io.BytesIO(members[row["key"]]["winner.latent.npy"]))
        torch.testing.assert_close(torch.from_numpy(found).float(), expected, atol=5e-3, rtol=5e-3)


def png(color: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png((250, 10, 10)), png((10, 10, 250))


def write_pick_a_pic(path: Path, rows: list[tuple], *, row_group_size: int = 2) -> str:
    names = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(
        pa.table(columns | {"uid": range(len(rows))}), path, row_group_size=row_group_size
    )
    return str(path)


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_parts_hold_every_row_once(ending, size, tmp_path):
    prompts_in = [f"prompt {i}" for i in range(7)]
    path = tmp_path / f"p.{ending}"
    if ending == "parquet":
        write_pick_a_pic(path, [(p, RED, BLUE, 1.0, 0.0) for p in prompts_in], row_group_size=3)
    else:
        (tmp_path / "a.png").write_bytes(RED)
        rows = [{"prompt": p, "winner": "a.png", "loser": "a.png"} for p in prompts_in]
        path.write_text("\n\n".join(map(json.dumps, rows)))
    parts = parts_of(str(path), size)
    found = [source for part in parts for source in read_part(part)]
    assert [source.prompt for source in found] == prompts_in
    assert len({source.key for source in found}) == 7
    assert all(part.rows <= size for part in parts)


def test_a_glob_takes_all_its_files(tmp_path):
    for name in ("b", "a"):
        write_pick_a_pic(tmp_path / f"{name}.parquet", [(f"of {name}", RED, BLUE, 1.0, 0.0)])
    parts = parts_of(str(tmp_path / "*.parquet"), 4)
    found = [source for part in parts for source in read_part(part)]
    assert [source.prompt for source in found] == ["of a", "of b"]
    assert len({source.key for source in found}) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "holds no pairs"),
        ("p.jsonl", b"\n \n", "holds no pairs"),
        ("p.jsonl", b"oops\n", "first line of .*p.jsonl is not JSON"),
        ("p.jsonl", b'{"prompt": "a", "winner": "x"}\n', "no text field 'loser'"),
        ("p.jsonl", b'["a"]\n', "no text field 'prompt'"),
        ("p.jsonl", "{'prompt': 'gr\u00fcn'}".encode("latin-1"), "is not JSON"),
        ("p.parquet", b"not parquet", "cannot be read as parquet"),
        ("p.csv", b"a,b\n", "must end in .jsonl or .parquet"),
    ],
)
def test_a_malformed_file_is_one_clear_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        parts_of(str(tmp_path / name), 4)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_file_of_something_else_names_what_it_lacks(tmp_path):
    pq.write_table(pa.table({"caption": ["a"], "url": ["b"]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"lacks Pick-a-Pic's columns jpg_0, .*it has caption"):
        parts_of(str(tmp_path / "p.parquet"), 4)


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
