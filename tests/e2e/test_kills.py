"""A whole run killed in every stage, and resumed to the bytes of an undisturbed one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import artifact, call_here, run_and_kill
from tests.support.made_files import digests

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # seven lives, each with its own Ray

MOMENTS = {
    "synthesize": ("distill", "artifacts/synthesize/*/shards/*/*.json", 3),
    "distill": ("distill", "training/distill/*/checkpoint_*/trace.jsonl", 1),
    "pairs": ("eval", "artifacts/pairs/*/shards/pairs/*.json", 1),
    "dpo, training": ("eval", "training/dpo/*/checkpoint_*/trace.jsonl", 1),
    "dpo, scales": ("eval", "artifacts/dpo/*/shards/tuned.json", 1),
    "eval": ("eval", "artifacts/eval/*/shards/*/*.json", 5),
}
"""Up to which stage a run goes, and when it is killed: as soon as there are this many files of a
pattern. Pairs need prompts alone, and would be made beside the student.
"""
KEPT = {
    "synthesize": "artifacts/synthesize/*/shards/*/*.json",
    "distill": "artifacts/synthesize/*/shards/*/*.tar",
    "dpo, training": "artifacts/pairs/*/shards/pairs/*.json",
    "dpo, scales": "artifacts/dpo/*/lora/*",
    "eval": "artifacts/eval/*/shards/*/*.json",
}
"""What is finished at that moment, and is never made again."""


def times(store: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.glob(pattern)}


def without_times(report: dict) -> dict:
    """A report's content that must not differ between two runs."""
    for system in report["systems"]:
        system.pop("seconds_per_picture")
    return {k: report[k] for k in ("systems", "win_rates", "data", "tuning", "wall", "prompts")}


def reached(store: Path, pattern: str, count: int) -> Callable[[], bool]:
    return lambda: len(list(store.glob(pattern))) >= count


def test_killed_in_every_stage_it_resumes_to_the_same_bytes(smoke_store, tmp_path):
    store = tmp_path / "store"
    arguments = ["run", "--preset", "shapes-smoke", "--set", f"store={store}"]
    kept: dict[Path, int] = {}
    for moment, (until, pattern, count) in MOMENTS.items():
        run_and_kill([*arguments, "--until", until], reached(store, pattern, count))
        stage = moment.split(",")[0]
        assert not list(store.glob(f"artifacts/{stage}/*/manifest.json")), moment
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, moment
        kept |= times(store, KEPT[moment]) if moment in KEPT else {}
    result = call_here(*arguments)  # only the evaluation is left, which takes no Ray
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for stage in ("prompts", "synthesize", "encode", "distill", "pairs", "dpo", "eval"):
        mine, undisturbed = artifact(store, stage), artifact(smoke_store, stage)
        assert digests(mine) == digests(undisturbed), stage
        manifests = [json.loads((f / "manifest.json").read_text()) for f in (mine, undisturbed)]
        assert manifests[0]["counts"] == manifests[1]["counts"], stage
    reports = [(artifact(s, "eval") / "report.json").read_text() for s in (store, smoke_store)]
    first, second = (without_times(json.loads(text)) for text in reports)
    assert first == second
    for stage, total in (("distill", 8), ("dpo", 4)):
        lines = (artifact(store, stage) / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if {"loss", "student_loss"} & row.keys()]
        assert [row["step"] for row in rows] == list(range(1, total + 1)), stage
