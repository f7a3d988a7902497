"""Stage `prompts`: cleaning, de-duplication, stable splits, sources, and the plan of shards."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from schemas.config import FileSource
from schemas.errors import ConfigError, StageFailed
from stages import prompts as stage
from stages.texts.duplicates import first_of_equals, first_of_similar, signatures
from stages.texts.sources import mixed, read_file, require_prompt_file
from tests.conftest import make_tiny_config

GENEVAL = Path(__file__).parents[3] / "shared" / "data" / "geneval_prompts.jsonl"


def run_stage(tiny_sd3, store, **prompts):
    config = make_tiny_config(tiny_sd3, store, prompts=prompts)
    context = StageContext("prompts", "k", config, ArtifactStore(str(store)), {}, lambda *a: None)
    result = stage.run(context)
    folder = store / "artifacts" / "prompts" / "k"
    rows = [
        row
        for p in sorted(folder.glob("prompts/*.parquet"))
        for row in pq.read_table(p).to_pylist()
    ]
    return result, rows, folder


def text_file(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return {"sources": [{"kind": "file", "url": str(path)}], "count": None}


@given(st.text())
def test_cleaning_is_idempotent_and_leaves_no_control_characters(text):
    cleaned = stage.clean(text)
    assert stage.clean(cleaned) == cleaned
    assert cleaned == cleaned.strip() and "  " not in cleaned
    assert not any(ord(c) < 32 for c in cleaned)


def test_cleaning_composes_unicode_and_folds_white_space():
    assert stage.clean("cafe\u0301\t\n  noir\u2028\x00!") == "café noir !"


def test_half_of_a_surrogate_pair_is_cut_off():
    """JavaScript leaves one where it cuts a text in an emoji, and JSON carries it."""
    cut = json.loads('"a red ring \\ud83d"')
    assert stage.clean(cut) == "a red ring" and stage.prompt_id(stage.clean(cut))


def test_drops_are_counted_by_reason(tiny_sd3, tmp_path):
    lines = [
        "a red circle",
        "A RED circle",
        " a  red circle ",
        "something violent",
        "a " * 30,
        "!",
        "a blue ring",
        "\x00",
    ]
    source = text_file(tmp_path / "p.txt", lines)
    result, rows, _ = run_stage(
        tiny_sd3, tmp_path / "s", **source, block=["violen[ct]"], min_tokens=2
    )
    assert {row["prompt"] for row in rows} == {"a red circle", "a blue ring"}
    expected = {
        "drawn": 8,
        "kept": 2,
        "dropped_duplicate": 2,
        "dropped_blocked": 1,
        "dropped_long": 1,
        "dropped_short": 1,
        "dropped_empty": 1,
    }
    assert {name: result.counts[name] for name in expected} == expected


def test_near_duplicates_are_dropped_and_the_first_is_kept(tiny_sd3, tmp_path):
    base = "a big red circle left of a small blue ring"
    source = text_file(
        tmp_path / "p.txt", [base, base + "s", "a white cross", base.replace("circle", "square")]
    )
    result, rows, _ = run_stage(tiny_sd3, tmp_path / "s", **source, near_duplicates=0.85)
    assert [row["prompt"] for row in rows] == [
        base,
        "a white cross",
        base.replace("circle", "square"),
    ]
    assert result.counts["dropped_near_duplicate"] == 1


def test_similarity_estimate_agrees_with_jaccard(tmp_path):
    """Every pair that is surely alike is dropped, none that is surely different."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(200)]
    copies = [text[:-1] for text in texts[:50]]
    path = tmp_path / "similar.bin"
    path.write_bytes(signatures(texts + copies).tobytes())
    keep = first_of_similar(path, np.ones(250, bool), 0.8)
    assert keep[:200].all() and not keep[200:].any()


def test_first_of_equals(tmp_path):
    path = tmp_path / "equal.bin"
    path.write_bytes(b"".join(bytes([value]) * 16 for value in (1, 2, 1, 3, 2)))
    assert first_of_equals(path, 5).tolist() == [True, True, False, True, False]
    assert first_of_equals(path, 0).tolist() == []


def test_adding_prompts_moves_none(tiny_sd3, tmp_path):
    lines = [f"a red circle {i}" for i in range(60)]
    _, few, _ = run_stage(tiny_sd3, tmp_path / "s1", **text_file(tmp_path / "p.txt", lines[::2]))
    _, many, _ = run_stage(tiny_sd3, tmp_path / "s2", **text_file(tmp_path / "p.txt", lines[::-1]))
    chosen = {row["prompt"]: row for row in many}
    assert {row["split"] for row in few} == {"train", "held_out"}
    assert all(chosen[row["prompt"]] == row for row in few)


def test_splits_and_buckets_follow_their_shares():
    texts = [f"prompt {i}" for i in range(4000)]
    held = np.mean([stage.split_of(t, 0.2) == "held_out" for t in texts])
    wide = np.mean([stage.bucket_of(t, {"64x64": 3, "96x40": 1}) == "96x40" for t in texts])
    assert held == pytest.approx(0.2, abs=0.03) and wide == pytest.approx(0.25, abs=0.03)


def test_seeds_belong_to_samples():
    seeds = {stage.seed_of(0, prompt, image) for prompt in ("a", "b") for image in range(5)}
    assert len(seeds) == 10
    assert stage.seed_of(0, "a", 1) == stage.seed_of(0, "a", 1) != stage.seed_of(1, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_shard_plan_holds_every_training_sample_once(tiny_sd3, tmp_path):
    result, rows, folder = run_stage(
        tiny_sd3, tmp_path / "s", images_per_prompt=3, samples_per_shard=5
    )
    train = [row for row in rows if row["split"] == "train"]
    keys = []
    for shard in result.details["shards"]:
        samples = pq.read_table(folder / f"{shard}.parquet").to_pylist()
        assert len(samples) <= 5
        assert {f"{s['width']}x{s['height']}" for s in samples} == {shard.split("/")[1]}
        keys += [s["key"] for s in samples]
    assert len(keys) == len(set(keys)) == 3 * len(train) == result.counts["samples"]
    assert not any("." in key for key in keys)
    held = pq.read_table(folder / "held_out.parquet")["prompt"].to_pylist()
    assert sorted(held) == sorted(row["prompt"] for row in rows if row["split"] == "held_out")


def test_held_out_prompts_are_written_in_parts(tiny_sd3, tmp_path, monkeypatch):
    result, _, whole = run_stage(tiny_sd3, tmp_path / "whole")
    monkeypatch.setattr(stage, "ROWS_PER_FILE", 2)
    _, _, parts = run_stage(tiny_sd3, tmp_path / "parts")
    assert result.counts["held_out"] > 2
    assert pq.ParquetFile(parts / "held_out.parquet").num_row_groups > 1
    tables = [pq.read_table(folder / "held_out.parquet") for folder in (whole, parts)]
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_two_runs_give_the_same_bytes(tiny_sd3, tmp_path):
    first, second = (run_stage(tiny_sd3, tmp_path / name)[0] for name in "ab")
    assert first == second


def test_every_prompt_may_be_dropped_but_that_is_an_error(tiny_sd3, tmp_path):
    with pytest.raises(StageFailed, match=r"no prompt survived.*dropped_blocked 1"):
        run_stage(
            tiny_sd3, tmp_path / "s", **text_file(tmp_path / "p.txt", ["a red ring"]), block=["red"]
        )


def write_as(path: Path, prompts: list[str]) -> str:
    match path.suffix:
        case ".txt":
            path.write_text("".join(f"{p}\n" for p in prompts))
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": p, "id": 1}) + "\n" for p in prompts))
        case ".csv":
            with open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([["id", "prompt"], *([i, p] for i, p in enumerate(prompts))])
        case ".parquet":
            pq.write_table(pa.table({"prompt": prompts}), path)
    return str(path)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_prompts(ending, tmp_path):
    prompts = ["a, b", 'say "x"', "grün ☃"]
    source = FileSource(kind="file", url=write_as(tmp_path / f"p.{ending}", prompts))
    assert [p.strip("\n") for p in read_file(source)] == prompts


def parquet_bytes(column):
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": column}), file)
    return file.getvalue()


def test_a_folder_is_no_file_of_prompts(tmp_path):
    (tmp_path / "p.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"there is no file .*p\.parquet"):
        require_prompt_file(FileSource(kind="file", url=str(tmp_path / "p.parquet")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', "line 1 has no text field 'prompt'"),
        ("p.csv", b"id,text\n1,a\n", "no text field 'prompt'"),
        ("p.parquet", b"not parquet", "cannot be read as parquet"),
        ("p.parquet", parquet_bytes([1, 2]), "column 'prompt' holds int64, no text"),
        ("p.parquet", parquet_bytes([["a"], ["b"]]), "holds list<.*>, no text"),
        ("p.docx", b"", "must end in one of"),
    ],
)
def test_broken_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        list(read_file(FileSource(kind="file", url=str(tmp_path / name))))
    assert name in str(error.value)


def test_sources_are_mixed_by_weight_until_dry(tmp_path):
    sources = [
        FileSource(
            kind="file", url=write_as(tmp_path / "a.txt", [f"a{i}" for i in range(300)]), weight=3
        ),
        FileSource(
            kind="file", url=write_as(tmp_path / "b.txt", [f"b{i}" for i in range(300)]), weight=1
        ),
    ]
    drawn = [name for _, name in mixed(sources, 0)]
    assert len(drawn) == 600
    assert np.mean([name == "a.txt" for name in drawn[:300]]) == pytest.approx(0.75, abs=0.08)


@pytest.mark.skipif(not GENEVAL.exists(), reason=f"{GENEVAL} is not beside the project")
def test_geneval_prompts_pass(tiny_sd3, tmp_path):
    source = {"sources": [{"kind": "file", "url": str(GENEVAL)}], "count": None, "max_tokens": 200}
    result, rows, _ = run_stage(tiny_sd3, tmp_path / "s", **source)
    assert result.counts["drawn"] == 553
    assert result.counts["kept"] == len(rows) == 553 - result.counts["dropped_duplicate"]
