"""Stage `prompts`: drops counted by reason, stable splits, the plan of shards."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.base.store import ArtifactStore
from schemas.errors import StageFailed
from stages import prompts as stage
from tests.support.command import ROOT
from tests.support.context import make_context
from tests.support.tiny_sd3 import make_tiny_config

GENEVAL = ROOT.parent / "shared" / "data" / "geneval_prompts.jsonl"


def run_stage(tiny_sd3, store, warn=None, **prompts):
    config = make_tiny_config(tiny_sd3, store, prompts=prompts)
    context = make_context("prompts", config, ArtifactStore(str(store)))
    context = replace(context, warn=warn) if warn else context
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
        "failed": 1,
    }
    assert {name: result.counts[name] for name in expected} == expected


def test_rows_that_are_no_prompts_are_counted_and_listed(tiny_sd3, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red ring"}\n{"prompt": null}\n{"id": 3}\n')
    source = {"sources": [{"kind": "file", "url": str(tmp_path / "p.jsonl")}], "count": None}
    warnings = []
    result, rows, folder = run_stage(tiny_sd3, tmp_path / "s", warn=warnings.append, **source)
    assert [row["prompt"] for row in rows] == ["a red ring"]
    assert (result.counts["drawn"], result.counts["failed"]) == (3, 2)
    listed = pq.read_table(folder / "failed.parquet").to_pylist()
    assert [(row["source"], row["place"]) for row in listed] == [
        ("p.jsonl", "line 2"),
        ("p.jsonl", "line 3"),
    ]
    assert "failed.parquet" in result.files
    assert len(warnings) == 1 and "2 of 3 rows (66.7%) cannot be used" in warnings[0]


def test_a_file_of_which_most_is_no_prompt_ends_the_stage(tiny_sd3, tmp_path):
    lines = [f"a red ring {i}" if i < 10 else "\u200b" for i in range(120)]
    with pytest.raises(StageFailed, match=r"110 of 120 rows .*empty \(110\).*failed\.parquet"):
        run_stage(tiny_sd3, tmp_path / "s", **text_file(tmp_path / "p.txt", lines))
    assert (tmp_path / "s/artifacts/prompts/k/failed.parquet").exists()


def test_prompts_that_differ_in_what_nobody_sees_are_one(tiny_sd3, tmp_path):
    """Else one of them may be held out and another one trained on."""
    persian = "\u0645\u06cc\u200c\u062e\u0648"
    lines = ["a red ring", "\ufeffa red\u200b ring", persian, persian.replace("\u200c", "")]
    source = text_file(tmp_path / "p.txt", lines)
    result, rows, _ = run_stage(tiny_sd3, tmp_path / "s", **source, near_duplicates=None)
    assert [row["prompt"] for row in rows] == ["a red ring", persian]
    assert result.counts["dropped_duplicate"] == 2


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


def test_adding_prompts_moves_none(tiny_sd3, tmp_path):
    lines = [f"a red circle {i}" for i in range(60)]
    _, few, _ = run_stage(tiny_sd3, tmp_path / "s1", **text_file(tmp_path / "p.txt", lines[::2]))
    _, many, _ = run_stage(tiny_sd3, tmp_path / "s2", **text_file(tmp_path / "p.txt", lines[::-1]))
    chosen = {row["prompt"]: row for row in many}
    assert {row["split"] for row in few} == {"train", "held_out"}
    assert all(chosen[row["prompt"]] == row for row in few)


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


@pytest.mark.skipif(not GENEVAL.exists(), reason=f"{GENEVAL} is not beside the project")
def test_geneval_prompts_pass(tiny_sd3, tmp_path):
    source = {"sources": [{"kind": "file", "url": str(GENEVAL)}], "count": None, "max_tokens": 200}
    result, rows, _ = run_stage(tiny_sd3, tmp_path / "s", **source)
    assert result.counts["drawn"] == 553
    assert result.counts["kept"] == len(rows) == 553 - result.counts["dropped_duplicate"]
