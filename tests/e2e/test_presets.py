"""Presets on real classes: shapes-smoke on the embedded teacher, the SD3 presets at tiny width with
all encoders.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import artifact, call_here
from tests.support.scores import save_clip
from tests.support.tiny_sd3 import build_pipeline

pytestmark = pytest.mark.slow


def test_smoke_preset_runs_and_samples_on_relative_paths(smoke_store, tmp_path):
    distilled = artifact(smoke_store, "distill")
    manifest = json.loads((distilled / "manifest.json").read_text())
    assert manifest["identity"]["teacher"]["revision"]
    where = ["--preset", "shapes-smoke", "--set", "store=store"]
    arguments = ["--steps", "2", "--bucket", "96x40", "--out", tmp_path / "drawn", *where]
    drawn = call_here("sample", "a red circle", *arguments, cwd=smoke_store.parent)
    assert drawn.returncode == 0, drawn.stderr
    assert len([p for p in drawn.stdout.splitlines() if (tmp_path / p).is_file()]) == 2


TRANSFORMERS = {
    "sd3-medium": {"qk_norm": None},
    "sd35-medium": {"dual": (0, 1)},
    "sd35-medium-512": {"dual": (0, 1)},
    "sd35-large": {},
}
"""What is particular about each: SD3 has no QK norm, SD3.5 medium dual attention."""
SKIPS = {
    "synthesize.skip_layer_guidance.layers": "[1]",
    "synthesize.skip_layer_guidance.stop": 1,
}
"""Skip-layer guidance of two steps and three blocks."""
SMALLER = {
    "sd35-medium": SKIPS,
    "sd35-medium-512": SKIPS | {"distill.lora.rank": 2},
    "sd35-large": {"distill.shard_over": 1, "distill.shard_teacher": False},
}
"""What only some presets have, made small."""


@pytest.mark.parametrize("preset", ["sd3-medium", "sd35-medium", "sd35-large"])
def test_sd3_presets_run_at_tiny_width_with_t5(preset, tmp_path):
    """The same classes (all three encoders, T5 included) and the same code path; only sizes are
    overridden.
    """
    made_small = tiny(preset, tmp_path, save_clip(tmp_path / "clip"))
    result = call_here("run", "--preset", preset, "--until", "distill", *made_small)
    assert result.returncode == 0, result.stderr
    check_student(tmp_path / "store")


def check_student(store: Path) -> None:
    """It was trained with T5, was looked at, and is saved with T5."""
    details = json.loads((artifact(store, "encode") / "manifest.json").read_text())["details"]
    assert details["null_tokens"] == 0
    distilled = artifact(store, "distill")
    assert (distilled / "model" / "text_encoder_3").is_dir()
    metrics = json.loads((distilled / "manifest.json").read_text())["metrics"]
    assert {"held_out_distance", "held_out_clip_score", "held_out_diversity"} <= metrics.keys()


def test_sd35_medium_512_runs_to_its_report(tmp_path):
    """The rest of the graph too, with PickScore and CLIP at tiny width."""
    preset = "sd35-medium-512"
    clip = save_clip(tmp_path / "clip")
    scores = [{"name": name, "model": str(clip)} for name in ("clip_score", "pick_score")]
    settings = {
        "prompts.held_out_fraction": 0.5,
        "pairs.prompts": 12,
        "pairs.pictures_per_prompt": 2,
        "pairs.margin": 0,
        "pairs.micro_batch": 4,
        "pairs.held_out_fraction": 0.25,
        "pairs.reward": scores[1],
        "dpo.steps": 2,
        "dpo.global_batch": 2,
        "dpo.micro_batch": 1,
        "dpo.workers": 1,
        "dpo.watch_every": 1,
        "dpo.lora.rank": 2,
        "dpo.scales": "[0.5, 1.0]",
        "dpo.chooser": scores[0],
        "dpo.chooser_prompts": 4,
        "eval.prompts": 8,
        "eval.scores": scores,
        "eval.features": {"name": "judge_features"},
        "eval.more_features": [{"name": "clip_features", "model": str(clip)}],
        "eval.alike_prompts": 2,
        "eval.alike_seeds": 2,
        "eval.micro_batch": 4,
    }
    result = call_here("run", "--preset", preset, *tiny(preset, tmp_path, clip), *flags(settings))
    assert result.returncode == 0, result.stderr
    check_student(tmp_path / "store")
    folder = artifact(tmp_path / "store", "eval")
    report = json.loads((folder / "report.json").read_text())
    assert set(report["cards"]) == {"clip_score", "pick_score"}
    assert "derivative of" in (folder / "model" / "README.md").read_text()
    assert list((artifact(tmp_path / "store", "dpo") / "lora").glob("*.safetensors"))


def tiny(preset: str, folder: Path, clip: Path) -> list[str]:
    """Flags that make a preset's run small: its teacher, its prompts, its numbers."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"a red circle {i}"}) + "\n" for i in range(48))
    )
    settings = {
        "store": folder / "store",
        "teacher.model": build_pipeline(folder / "model", t5=True, **TRANSFORMERS[preset]),
        "teacher.revision": "tiny",
        "teacher.max_sequence_length": 8,
        "prompts.sources": f"[{{kind: file, url: {prompts}}}]",
        "prompts.buckets": "{32x32: 1, 48x16: 1}",
        "prompts.max_tokens": 14,
        "prompts.near_duplicates": "null",
        "prompts.held_out_fraction": 0.1,
        "prompts.samples_per_shard": 8,
        "synthesize.steps": 2,
        "synthesize.flat_below": 0,
        **{f"{stage}.pool.workers": 1 for stage in ("synthesize", "encode", "pairs", "eval")},
        "distill.steps": 2,
        "distill.global_batch": 4,
        "distill.workers": 1,
        "distill.compile_blocks": False,
        "distill.micro_batch": 2,
        "distill.discriminator.head_start_steps": 1,
        "distill.sample_prompts": 1,
        "distill.discriminator.channels": 8,
        "distill.look.every": 3,  # the last update
        "distill.look.prompts": 2,
        "distill.look.scores": [{"name": "clip_score", "model": str(clip)}],
        "distill.look.features": {"name": "judge_features"},
        **SMALLER.get(preset, {}),
    }
    return flags(settings)


def flags(settings: dict) -> list[str]:
    return [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
