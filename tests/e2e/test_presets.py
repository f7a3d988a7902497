"""Presets on real classes: shapes-smoke on the embedded teacher, the SD3 presets at tiny width with
all encoders.
"""

from __future__ import annotations

import json

import pytest

from tests.e2e.test_chain import artifact, call

pytestmark = pytest.mark.slow


def test_smoke_preset_runs_the_whole_chain_on_relative_paths(tmp_path):
    """Ray Train moves its workers to a folder of their own: a relative store must reach them."""
    settings = ["--preset", "shapes-smoke", "--set", "store=here/store"]
    result = call("run", *settings, "--until", "distill", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    distilled = artifact(tmp_path / "here" / "store", "distill")
    manifest = json.loads((distilled / "manifest.json").read_text())
    assert manifest["identity"]["teacher"]["revision"]
    arguments = ["--steps", "2", "--bucket", "96x40", "--out", "drawn", *settings]
    drawn = call("sample", "a red circle", *arguments, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert len([p for p in drawn.stdout.splitlines() if (tmp_path / p).is_file()]) == 2


@pytest.mark.parametrize("preset", ["sd3-medium", "sd35-medium", "sd35-large"])
def test_sd3_presets_run_at_tiny_width_with_t5(preset, tiny_sd35_t5, tmp_path):
    """The same classes (all three encoders, T5 included) and the same code path; only sizes are
    overridden.
    """
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"a red circle {i}"}) + "\n" for i in range(24))
    )
    overrides = {
        "store": tmp_path / "store",
        "teacher.model": tiny_sd35_t5,
        "teacher.revision": "tiny",
        "teacher.max_sequence_length": 8,
        "prompts.sources": f"[{{kind: file, url: {tmp_path}/prompts.jsonl}}]",
        "prompts.buckets": "{32x32: 1, 48x16: 1}",
        "prompts.max_tokens": 14,
        "prompts.near_duplicates": "null",
        "prompts.held_out_fraction": 0.1,
        "prompts.samples_per_shard": 8,
        "synthesize.steps": 2,
        "synthesize.flat_below": 0,
        "distill.steps": 2,
        "distill.global_batch": 4,
        "distill.workers": 1,
        "distill.shard_over": 1,
        "distill.shard_teacher": False,
        "distill.micro_batch": 2,
        "distill.discriminator.head_start_steps": 1,
        "distill.sample_prompts": 1,
        "distill.discriminator.channels": 8,
    }
    arguments = [part for name, value in overrides.items() for part in ("--set", f"{name}={value}")]
    result = call("run", "--preset", preset, "--until", "distill", *arguments)
    assert result.returncode == 0, result.stderr
    details = json.loads((artifact(tmp_path / "store", "encode") / "manifest.json").read_text())[
        "details"
    ]
    assert details["null_tokens"] == 0
    assert (artifact(tmp_path / "store", "distill") / "model" / "text_encoder_3").is_dir()
