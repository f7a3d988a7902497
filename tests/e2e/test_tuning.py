"""Preference tuning through the command line, on the embedded teacher: the chosen scale, and what
stock diffusers makes of the adapters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import artifact, call_here

pytestmark = pytest.mark.slow


def arguments(store: Path, until: str) -> list[str]:
    return ["run", "--preset", "shapes-smoke", "--until", until, "--set", f"store={store}"]


def times(store: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.glob(pattern)}


def test_a_second_run_computes_nothing(smoke_store):
    before = times(smoke_store, "artifacts/**/*")
    result = call_here(*arguments(smoke_store, "dpo"))
    assert result.returncode == 0, result.stderr
    assert times(smoke_store, "artifacts/**/*") == before


def test_the_scale_is_chosen_by_the_other_score(smoke_store):
    manifest = json.loads((artifact(smoke_store, "dpo") / "manifest.json").read_text())
    details = manifest["details"]
    assert [row["scale"] for row in details["scales"]] == [0.0, 0.5, 1.0]
    rows = [row for row in details["scales"] if row["scale"] > 0]
    best = max(rows, key=lambda row: (row["attributes"], -row["scale"]))
    assert details["scale"] == best["scale"] and details["chooser"] == "attributes"
    assert all("layout" in row for row in rows)


def test_the_reward_may_not_choose_the_scale(smoke_store):
    result = call_here(*arguments(smoke_store, "dpo"), "--set", "dpo.chooser.name=layout")
    assert result.returncode == 2
    assert "name another score" in result.stderr and "Traceback" not in result.stderr


def test_stock_diffusers_loads_the_adapters(smoke_store):
    """A process that imports nothing of ours draws with student and adapters what the merged
    student draws, but for the rounding of the merged weights to bfloat16.
    """
    tuned = artifact(smoke_store, "dpo")
    student = artifact(smoke_store, "distill") / "model"
    details = json.loads((tuned / "manifest.json").read_text())["details"]
    code = f"""
import sys
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
def load(folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe
def draw(pipe):
    torch.manual_seed(2)
    size = {{"height": 64, "width": 64, "output_type": "np"}}
    out = pipe("a red circle", num_inference_steps=4, guidance_scale=0, **size)
    return out.images[0] * 255
student, merged = load({str(student)!r}), load({str(tuned / details["model"])!r})
student.load_lora_weights({str(tuned / details["lora"])!r})
(name,) = student.get_list_adapters()["transformer"]
student.set_adapters(name, {details["scale"]})
assert not [m for m in sys.modules if m.split(".")[0] in ("pipeline", "stages", "schemas")]
print(np.abs(draw(student) - draw(merged)).mean())
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.splitlines()[-1]) < 4
