"""The chain to the student through the command line: what is done again, what stock tools read, and
what damaged, diverged and stopped runs say.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.command import ROOT, artifact, call_here, start_ray, start_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(smoke_store, tmp_path_factory) -> tuple[Path, Path]:
    """A configuration file, and the store of its finished run."""
    config = tmp_path_factory.mktemp("chain") / "pipeline.yaml"
    config.write_text(yaml.safe_dump({"preset": "shapes-smoke", "store": str(smoke_store)}))
    return config, smoke_store


def test_run_names_student_and_samples(finished):
    config, store = finished
    result = call_here("run", "-c", config, "--until", "distill")
    lines = dict(
        line.split(": ", 1)
        for line in result.stdout.splitlines()
        if line.startswith(("student: ", "samples: "))
    )
    assert (
        Path(lines["student"]) / "transformer" / "diffusion_pytorch_model.safetensors"
    ).is_file()
    assert Path(lines["samples"]).read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((artifact(store, "distill") / "manifest.json").read_text())
    assert manifest["counts"]["updates"] == 8
    assert [entry["stage"] for entry in manifest["inputs"]] == ["prompts", "encode"]


def test_second_run_computes_nothing_and_imports_neither_ray_nor_torch(finished):
    config, store = finished
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    code = (
        "import sys; from pipeline.cli import main\n"
        f"sys.argv = ['ladd-pipeline', 'run', '-c', {str(config)!r}, '--until', 'distill']\n"
        "main()\n"
        "print([m for m in ('ray', 'torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def plan(config: Path, *settings: str) -> dict[str, dict]:
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = call_here("plan", "-c", config, "--until", "distill", "--json", *arguments)
    assert result.returncode == 0, result.stderr
    rows = {row["stage"]: row for row in json.loads(result.stdout)}
    return {name: rows[name] for name in ("prompts", "synthesize", "encode", "distill")}


def test_plan_names_the_changed_identity_field(finished):
    rows = plan(finished[0], "distill.learning_rate=0.5")
    assert [name for name, row in rows.items() if row["action"] == "run"] == ["distill"]
    assert rows["distill"]["why"] == "distill.learning_rate changed from 3e-05 to 0.5"


def test_runtime_field_invalidates_nothing(finished):
    rows = plan(finished[0], "distill.log_every=3", "synthesize.pool.workers=1", "ray.num_cpus=2")
    assert {row["action"] for row in rows.values()} == {"done"}


def test_student_samples_on_its_grid_in_stock_diffusers(finished):
    """A process that imports nothing of ours; `-P` and another folder keep our packages out of
    reach.
    """
    _, store = finished
    student = artifact(store, "distill") / "model"
    code = f"""
import sys, json
from diffusers import StableDiffusion3Pipeline, FlowMatchEulerDiscreteScheduler
student = {str(student)!r}
pipe = StableDiffusion3Pipeline.from_pretrained(student, text_encoder_3=None, tokenizer_3=None)
pipe.set_progress_bar_config(disable=True)
size = {{"height": 64, "width": 64}}
def draw(steps):
    return pipe("a red circle", num_inference_steps=steps, guidance_scale=0, **size).images[0]
found = {{}}
for steps in (4, 2):
    image = draw(steps)
    found[steps] = [pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist(), image.size]
one_step = FlowMatchEulerDiscreteScheduler.from_pretrained(student, subfolder="scheduler_one_step")
pipe.scheduler = one_step
image = draw(1)
found[1] = [pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist(), image.size]
assert not [m for m in sys.modules if m.split(".")[0] in ("pipeline", "stages", "schemas")]
print(json.dumps(found))
"""
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["4"] == [
        pytest.approx([1, 0.75, 0.5, 0.25, 0]),
        pytest.approx([1000, 750, 500, 250]),
        [64, 64],
    ]
    assert found["2"] == [pytest.approx([1, 0.25, 0]), pytest.approx([1000, 250]), [64, 64]]
    assert found["1"] == [[1, 0], [1000], [64, 64]]


def test_behind_a_damaged_checkpoint_training_goes_on_from_the_one_before_it(finished, tmp_path):
    config, undisturbed = finished
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)
    shutil.rmtree(artifact(store, "distill"))
    latest = sorted(store.glob("training/distill/*/checkpoint_*/state"))[-1]
    damaged = next(latest.glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    arguments = ["run", "-c", config, "--until", "distill", "--set", f"store={store}"]
    result = call_here(*arguments, ray=True)
    assert result.returncode == 0, result.stderr
    assert f"{latest} cannot be read" in result.stderr
    traces = [(artifact(s, "distill") / "metrics.jsonl").read_text() for s in (store, undisturbed)]
    assert traces[0] == traces[1]


def test_a_stopped_run_says_how_to_go_on(finished, tmp_path):
    config, store = finished[0], tmp_path / "store"
    process = start_until(
        lambda: list(store.glob("artifacts/prompts/*/manifest.json")),
        *("run", "-c", config, "--until", "distill", "--set", f"store={store}"),
    )
    process.send_signal(signal.SIGINT)  # SIGTERM stops a sweep, in another test
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "to resume: ladd-pipeline run" in errors and "Traceback" not in errors


def test_stock_readers_read_our_shards(finished):
    """webdataset and Ray's read_webdataset see every sample, grouped rightly."""
    import ray
    import webdataset

    _, store = finished
    folder = artifact(store, "synthesize")
    count = json.loads((folder / "manifest.json").read_text())["counts"]["ok"]
    tars = sorted(str(p) for p in folder.rglob("*.tar"))
    read = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(read) == count
    assert all({"png", "txt", "json", "__key__"} <= set(sample) for sample in read)
    assert len({sample["__key__"] for sample in read}) == count
    start_ray()
    assert ray.data.read_webdataset(tars).count() == count


def test_workers_ask_their_own_ray_and_not_the_one_that_started_last():
    """Bug: leave RAY_ADDRESS to what the command's surroundings say. A second Ray with a dashboard
    then ended the training of the first.
    """
    import os

    import ray

    start_ray()
    asked = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert asked == ray.get_runtime_context().gcs_address


def test_flipped_byte_in_a_shard_is_named(finished, tmp_path):
    config, store = finished
    copy = tmp_path / "store"
    subprocess.run(["cp", "-r", store, copy], check=True)
    tar = next(iter(artifact(copy, "synthesize").rglob("*.tar")))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    arguments = ["-c", config, "--set", f"store={copy}"]
    result = call_here("run", "--only", "encode", "--force", "encode", *arguments, ray=True)
    assert result.returncode == 4
    assert tar.name in result.stderr and "damaged" in result.stderr
    assert "Traceback" not in result.stderr
    result = call_here("artifacts", "verify", "--deep", "-c", config, "--set", f"store={copy}")
    assert result.returncode == 4
    assert tar.name in result.stderr


def test_encode_reads_img2dataset_layout(finished, tmp_path):
    """Shards as img2dataset writes them: jpg, txt and json members, any picture size, one truncated
    picture.
    """
    import io

    import numpy as np
    from PIL import Image

    from pipeline.base.shards import write_tar

    config, _ = finished
    rng = np.random.default_rng(0)
    samples = []
    for i, size in enumerate([(40, 40), (90, 31), (64, 20), (33, 36), (50, 50)]):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(
            buffer, "JPEG"
        )
        picture = buffer.getvalue()[: 40 if i == 4 else None]
        caption = f"picture number {i}"
        record = {
            "caption": caption,
            "key": f"{i:09d}",
            "status": "success",
            "width": size[0],
            "height": size[1],
        }
        samples.append(
            (
                f"{i:09d}",
                {"jpg": picture, "txt": caption.encode(), "json": json.dumps(record).encode()},
            )
        )
    write_tar(tmp_path / "00000.tar", samples)
    result = call_here(
        "run",
        "-c",
        config,
        "--until",
        "encode",
        "--set",
        f"store={tmp_path / 'store'}",
        "--set",
        f"encode.external=[{tmp_path}/*.tar]",
        "--set",
        "prompts.held_out_fraction=0",
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads((artifact(tmp_path / "store", "encode") / "manifest.json").read_text())
    assert (
        manifest["counts"]["ok"] == 4
        and manifest["counts"]["failed"] == 1
        and manifest["counts"]["prompts"] == 4
    )
    rows = {
        name: sum(p["rows"] for p in parts)
        for name, parts in manifest["details"]["buckets"].items()
    }
    assert rows == {"64x64": 2, "96x40": 2}


def test_divergence_aborts_once_and_keeps_the_last_good_checkpoint(finished, tmp_path):
    config, store = finished
    copy = tmp_path / "store"
    subprocess.run(["cp", "-r", store, copy], check=True)
    settings = [f"store={copy}", "distill.learning_rate=1e18", "distill.checkpoint_every=1"]
    settings += ["distill.max_skipped=0"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = call_here("run", "-c", config, "--until", "distill", *arguments, ray=True)
    assert result.returncode == 1
    assert "not a finite number; the last good checkpoint is kept" in result.stderr
    assert "Traceback" not in result.stderr
    assert "to resume: ladd-pipeline run" in result.stderr
    old = {path.name for path in store.glob("training/distill/*")}
    new = copy.glob("training/distill/*/checkpoint_*/state/*.safetensors")
    assert {path.parents[2].name for path in new} - old
    assert len(list(copy.glob("artifacts/distill/*/manifest.json"))) == 1
