"""Stage `dpo`: what it leaves, killed and resumed, and adapters that stock diffusers loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from pipeline.base.checking import damaged
from pipeline.base.mapping import map_shards
from schemas.errors import ConfigError, StageFailed
from stages import dpo
from stages.judging import adapter_scale
from stages.ladd.dpo_trainer import DpoTrainer
from stages.training import dpo_loop
from tests.support.context import commit, ignore
from tests.support.pairs import (
    GRID,
    context_of,
    made_pairs,
    made_prompts,
    made_student,
    open_stand_in,
    pairs_config,
    put_stand_ins,
)
from tests.support.training import training_here

pytestmark = pytest.mark.slow


def test_the_reward_may_not_choose(tiny_sd3, tmp_path):
    same = pairs_config(tiny_sd3, tmp_path, dpo={"chooser": {"name": "layout"}})
    with pytest.raises(ConfigError, match=r"dpo\.chooser is layout.*name another score"):
        dpo.check(same)
    dpo.check(pairs_config(tiny_sd3, tmp_path, dpo={"chooser": {"name": "attributes"}}))
    unknown = pairs_config(tiny_sd3, tmp_path, dpo={"chooser": {"name": "atributes"}})
    with pytest.raises(ConfigError, match=r"dpo\.chooser\.name: .*did you mean attributes"):
        dpo.check(unknown)
    voted = {"pairs": {"url": "votes.jsonl"}, "dpo": {"chooser": {"name": "layout"}}}
    dpo.check(pairs_config(tiny_sd3, tmp_path, **voted))


def scales_in_process(lives: int, calls: list):
    """`map_shards` without Ray; a death after `lives` scales."""

    def run(context, shards, build, pool, unit="shards"):
        from pipeline.base.markers import finished_shards

        done = finished_shards(context.store, context.folder)
        worker, left = build(), lives
        for shard in shards:
            if shard not in done:
                worker(shard)
                calls.append(shard)
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
        return map_shards(context, shards, build, pool, unit)

    return run


TUNING = {
    "steps": 6,
    "global_batch": 2,
    "watch_every": 2,
    "checkpoint_every": 2,
    "patience": 9,
    "learning_rate": 5e-3,
    "beta": 200.0,
    "precision": "float32",
    "lora": {"rank": 2, "alpha": 4},
    "scales": [0.5, 1.0],
    "chooser": {"name": "attributes"},
    "chooser_prompts": 3,
    "log_every": 1,
}


def tuned_stage(
    model: Path,
    store: Path,
    monkeypatch,
    *,
    key: str = "k",
    lives: int = 0,
    scales: int = 99,
    warn=ignore,
    **sections,
):
    """Run prompts, a student, pairs and `dpo` in this process; returns the artifact and what was
    done.
    """
    put_stand_ins(monkeypatch)
    monkeypatch.setattr(adapter_scale, "open_score", open_stand_in)
    monkeypatch.setattr(adapter_scale, "worker_devices", lambda pool: 1.0)
    config = pairs_config(model, store, dpo=TUNING, **sections)
    inputs = {name: context_of(name, config).store.find(name, "k") for name in ("prompts", "pairs")}
    student = context_of("dpo", config).store.find("distill", "k")
    if inputs["pairs"] is None:
        inputs["prompts"], student = made_prompts(config), made_student(config)
        inputs["pairs"] = made_pairs(
            config, inputs["prompts"], student if config.pairs.model == "student" else None
        )
    context, calls = context_of("dpo", config, distill=student, **inputs), []
    context = dataclasses.replace(context, key=key, warn=warn)
    monkeypatch.setattr(dpo, "train_on_ray", training_here(lives, calls))
    monkeypatch.setattr(adapter_scale, "map_shards", scales_in_process(scales, calls))
    try:
        return commit(context, dpo.run(context)), calls
    except KeyboardInterrupt:
        return None, calls


@pytest.fixture(scope="module")
def undisturbed(tiny_sd3, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        store = tmp_path_factory.mktemp("dpo") / "store"
        made, calls = tuned_stage(tiny_sd3, store, patch)
        assert calls == ["new", *(f"shards/scales/{i:03d}" for i in range(3))]
        return made


def test_the_stage_leaves_adapters_a_student_and_its_story(undisturbed):
    folder = Path(undisturbed.store.path(undisturbed.folder))
    details, names = undisturbed.manifest.details, {f.path for f in undisturbed.manifest.files}
    assert {
        "lora/pytorch_lora_weights.safetensors",
        "model/transformer/diffusion_pytorch_model.safetensors",
        "model/student.json",
        "model/scheduler_one_step/scheduler_config.json",
        "metrics.jsonl",
    } <= names
    assert not [name for name in names if name.startswith("model/lora")]
    assert any(name.startswith("tensorboard/") for name in names)
    assert damaged(undisturbed, deep=True) == []
    assert (details["model"], details["lora"], details["grid"]) == ("model", "lora", GRID)
    assert details["tuned"] == "teacher" and details["chooser"] == "attributes"
    assert [row["scale"] for row in details["scales"]] == [0.0, 0.5, 1.0]
    assert all(set(row) == {"scale", "attributes", "layout"} for row in details["scales"])
    assert len({row["attributes"] for row in details["scales"]}) == 3
    best = max(details["scales"][1:], key=lambda row: row["attributes"])
    assert details["scale"] == best["scale"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "held_out_loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in looks] == [2, 4, 6]
    for row in looks:
        assert {name for name in row if name != "step"} == {
            f"held_out_{name}"
            for name in (
                *("loss", "margin", "accuracy", "winner_error", "loser_error"),
                *("winner_reference_error", "loser_reference_error"),
            )
        }
    assert undisturbed.manifest.counts["updates"] == 6
    assert undisturbed.manifest.counts["best_update"] in (2, 4, 6)


def test_stock_diffusers_draws_with_the_adapters_what_the_merged_student_draws(
    undisturbed, tiny_sd3
):
    """The student's folder and `load_lora_weights`, at the chosen scale, against the folder
    `model`.
    """
    folder = Path(undisturbed.store.path(undisturbed.folder))
    student = Path(undisturbed.store.path("artifacts/distill/k/model"))

    def load(path: Path) -> StableDiffusion3Pipeline:
        pipe = StableDiffusion3Pipeline.from_pretrained(path, text_encoder_3=None, tokenizer_3=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(pipe: StableDiffusion3Pipeline):
        torch.manual_seed(2)  # the stock scheduler draws its noise from the global generator
        return pipe(
            "a red circle",
            num_inference_steps=4,
            guidance_scale=0,
            height=32,
            width=48,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images

    with_adapters, merged = load(student), draw(load(folder / "model"))
    plain = draw(with_adapters)
    with_adapters.load_lora_weights(folder / "lora")
    (name,) = with_adapters.get_list_adapters()["transformer"]
    with_adapters.set_adapters(name, undisturbed.manifest.details["scale"])
    torch.testing.assert_close(draw(with_adapters), merged, atol=1e-4, rtol=1e-3)
    assert (plain - merged).abs().max() > 1e-3
    settings = with_adapters.transformer.peft_config[name]
    assert (settings.r, settings.lora_alpha) == (2, 4), "alpha travels with the adapters"


def contents(artifact) -> dict[str, str]:
    """Digests of all files but TensorBoard's and the signals, which hold times, and the
    configuration of the transformer, in which diffusers writes where it was loaded from.
    """
    apart = ("tensorboard/", "signals.jsonl", "model/transformer/config.json")
    return {f.path: f.sha256 for f in artifact.manifest.files if not f.path.startswith(apart)}


def test_killed_and_resumed_gives_the_same_result_and_does_nothing_twice(
    undisturbed, tiny_sd3, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch, lives=1)
    assert made is None and calls == ["new"]
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch, scales=1)
    assert made is None and calls == ["from 2", "shards/scales/000"]
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch)
    assert calls == ["shards/scales/001", "shards/scales/002"], "no training, one scale less"
    assert contents(made) == contents(undisturbed)
    assert made.manifest.details == undisturbed.manifest.details
    assert made.manifest.metrics == undisturbed.manifest.metrics


def test_a_longer_tuning_goes_on_and_looks_like_an_undisturbed_one(
    undisturbed, tiny_sd3, tmp_path, monkeypatch
):
    """Bug: go on from behind the shorter one's last look, after update 5, which counts among those
    that a longer one waits for.
    """
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setitem(TUNING, "steps", 5)
        short, _ = tuned_stage(tiny_sd3, store, monkeypatch, key="short")
    rows = (Path(short.store.path(short.folder)) / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 5 and "held_out_loss" in json.loads(rows[-1])
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch)
    assert calls[0] == "from 5"
    assert contents(made) == contents(undisturbed)
    assert made.manifest.details == undisturbed.manifest.details
    with monkeypatch.context() as patch:
        patch.setitem(TUNING, "steps", 5)
        patch.setattr(DpoTrainer, "update", pytest.fail)
        again, _ = tuned_stage(tiny_sd3, store, monkeypatch, key="again")
    assert contents(again) == contents(short)


def test_an_early_stop_ends_the_stage_with_the_best_adapters(tiny_sd3, tmp_path, monkeypatch):
    made_by = []

    class FirstIsBest(DpoTrainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made_by.append(self)

        def look(self, batches):
            metrics = super().look(batches)
            self.best_loss = min(self.best_loss, -1.0)
            return metrics

    monkeypatch.setattr(dpo_loop, "DpoTrainer", FirstIsBest)
    monkeypatch.setitem(TUNING, "patience", 1)
    said = []
    made, _ = tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch, warn=said.append)
    folder = Path(made.store.path(made.folder))
    assert made.manifest.counts["updates"] == 4
    assert any("stopped after update 4" in text and "update 2" in text for text in said)
    saved = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    (trainer,) = made_by
    assert len(saved) == len(trainer.best)
    for name, best in trainer.best.items():
        assert torch.equal(saved[name.replace(".default", "")], best)


def test_worse_than_without_adapters_is_a_warning(tiny_sd3, tmp_path, monkeypatch):
    sweep = adapter_scale.Sweep("attributes", [], 0.5, -0.25, [], 0.0)
    monkeypatch.setattr(adapter_scale, "try_scales", lambda context: sweep)
    said = []
    made, _ = tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch, warn=said.append)
    assert any(
        text.startswith("attributes rates the student higher without the adapters") for text in said
    )
    assert made.manifest.metrics["chooser_gain"] == -0.25


def test_the_student_is_tuned_on_its_own_levels(tiny_sd3, tmp_path, monkeypatch):
    seen = []
    original = DpoTrainer

    def recording(net, reference, config, device, levels):
        seen.append(levels)
        return original(net, reference, config, device, levels)

    monkeypatch.setattr(dpo_loop, "DpoTrainer", recording)
    made, _ = tuned_stage(
        tiny_sd3, tmp_path / "store", monkeypatch, pairs={"model": "student", "student_steps": 4}
    )
    assert seen == [GRID]
    assert made.manifest.details["tuned"] == "student"


def test_the_teacher_is_tuned_with_its_own_shift(tiny_sd3, tmp_path, monkeypatch):
    """Bug: hand the configuration on with its empty shift, which the trainer takes for none."""

    def stop(net, reference, config, device, levels):
        raise StageFailed(f"levels {levels}, shift {config.shift}")

    monkeypatch.setattr(dpo_loop, "DpoTrainer", stop)
    with pytest.raises(StageFailed, match=r"levels None, shift 3\.0"):
        tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch)


def test_too_few_pairs_for_a_batch_is_one_clear_sentence(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "global_batch", 64)
    with pytest.raises(ConfigError, match=r"dpo\.global_batch is 64.*32x32: \d+.*pairs\.prompts"):
        tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch)


def test_divergence_is_one_clear_sentence(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "learning_rate", 1e30)
    monkeypatch.setitem(TUNING, "max_skipped", 0)
    closed = []
    close = dpo_loop.TrainingTrace.close
    monkeypatch.setattr(
        dpo_loop.TrainingTrace, "close", lambda trace: closed.append(trace) or close(trace)
    )
    with pytest.raises(StageFailed, match=r"dpo: update \d.*Lower .*learning.rate"):
        tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch)
    assert len(closed) == 1, "trackers would take the run for one that goes on"
