"""`sweep` refuses before it trains, and shows what failed."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--at-once", 0], "--at-once"),
        (["--score", -1], "--score"),
        (["--set", "distill.steps="], "names no value"),
        (["--set", "synthesize.guidance_scale=3,2", "--score", 500], "synthesize differs"),
        (["--score", 5], "fewer than two"),
    ],
)
def test_a_sweep_that_would_go_wrong_trains_nothing(call, arguments, words):
    code, output, trained = call("sweep", "distill", *arguments)
    assert (code, trained) == (2, [])
    assert words in output and "Traceback" not in output


def test_a_sweep_with_a_failed_trial_shows_all_and_ends_with_1(call):
    code, output, trained = call("sweep", "distill", "--set", "distill.seed=0,1,2")
    assert (code, trained) == (1, ["seed=0", "seed=1", "seed=2"])
    assert "failed: no luck" in output
    assert output.count("made") == 2
    assert "error: 1 of 3 trials failed" in output


def test_a_table_that_cannot_be_written_is_a_sentence(call, tmp_path):
    out = tmp_path / "none" / "table.json"
    code, output, _ = call("sweep", "distill", "--set", "distill.seed=0,2", "--out", out)
    assert code == 2 and "Traceback" not in output
    assert f"--out {out} cannot be written: No such file or directory" in output
