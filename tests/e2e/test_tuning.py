"""Preference pairs and tuning through the command line, on the embedded teacher: killed in every
part and resumed, and what stock diffusers makes of the adapters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import artifact, call_here, run_and_kill

pytestmark = pytest.mark.slow


def arguments(store: Path, until: str) -> list[str]:
    return ["run", "--preset", "shapes-smoke", "--until", until, "--set", f"store={store}"]


def copied(store: Path, target: Path) -> Path:
    subprocess.run(["cp", "-r", store, target], check=True)
    return target


@pytest.fixture(scope="module")
def distilled(smoke_store, tmp_path_factory) -> Path:
    """A store with a student, before any pairs."""
    store = copied(smoke_store, tmp_path_factory.mktemp("tuning") / "store")
    for stage in ("pairs", "dpo", "eval"):
        shutil.rmtree(store / "artifacts" / stage)
    shutil.rmtree(store / "training" / "dpo")
    return store


def digests(folder: Path) -> dict[str, str]:
    """Of all that a stage has made, but for TensorBoard's files and statistics, which hold times,
    and the transformer's configuration, in which diffusers writes where it was loaded from.
    """
    apart = ("tensorboard/", "manifest.json", "config.yaml", "model/transformer/config.json")
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in paths.items()
        if not name.startswith(apart)
        and not (name.startswith("shards/") and name.endswith(".json"))
    }


def times(store: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in store.glob(pattern)}


def test_killed_in_every_part_it_resumes_to_the_same_result(distilled, smoke_store, tmp_path):
    store = copied(distilled, tmp_path / "store")
    command = arguments(store, "dpo")
    markers = "artifacts/pairs/*/shards/pairs/*.json"
    run_and_kill(command, lambda: list(store.glob(markers)))
    assert not list(store.glob("artifacts/pairs/*/manifest.json"))
    pairs_before = times(store, markers)

    checkpoints = "training/dpo/*/checkpoint_*/trace.jsonl"
    run_and_kill(command, lambda: len(list(store.glob(checkpoints))) >= 1)
    assert not list(store.glob("artifacts/dpo/*/shards/tuned.json"))
    now = times(store, markers)
    assert {path: now[path] for path in pairs_before} == pairs_before, "no pair is drawn twice"

    run_and_kill(command, lambda: list(store.glob("artifacts/dpo/*/shards/tuned.json")))
    assert not list(store.glob("artifacts/dpo/*/manifest.json"))
    adapters = times(store, "artifacts/dpo/*/lora/*")
    training = times(store, "training/dpo/*/checkpoint_*")
    assert adapters and training

    result = call_here(*command, ray=True)
    assert result.returncode == 0, result.stderr
    assert times(store, "artifacts/dpo/*/lora/*") == adapters
    assert times(store, "training/dpo/*/checkpoint_*") == training, "it is not trained again"
    for stage in ("pairs", "dpo"):
        assert digests(artifact(store, stage)) == digests(artifact(smoke_store, stage)), stage
    manifests = [
        json.loads((artifact(s, "dpo") / "manifest.json").read_text()) for s in (store, smoke_store)
    ]
    for part in ("counts", "metrics", "details"):
        assert manifests[0][part] == manifests[1][part], part
    lines = (artifact(store, "dpo") / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if "loss" in row]
    assert steps == list(range(1, 5))


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


def test_the_reward_may_not_choose_the_scale(distilled):
    result = call_here(*arguments(distilled, "dpo"), "--set", "dpo.chooser.name=layout")
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
