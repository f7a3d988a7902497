"""Preference tuning: the loss against an oracle, exact resume, early stop, and adapters that stock
diffusers loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from torch import distributed, multiprocessing

from pipeline.base.mapping import map_shards
from schemas.config import DpoConfig, LoraConfig
from schemas.errors import ConfigError, StageFailed
from stages import dpo, scale_sweep
from stages.judging.adapter_scale import chosen_scale
from stages.ladd.backbone import Conditioning
from stages.ladd.dpo_loss import (
    PairDraws,
    draw_pairs,
    pair_errors,
    preference_loss,
    preference_margin,
)
from stages.ladd.dpo_trainer import DpoTrainer, TuningWatch
from stages.ladd.trainer import TrainingDiverged
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import SD3Adapters, add_adapters
from tests.conftest import tiny_transformer
from tests.unit.test_pairs import (
    GRID,
    commit,
    context_of,
    made_pairs,
    made_prompts,
    made_student,
    open_stand_in,
    pairs_config,
    put_stand_ins,
)

CPU = torch.device("cpu")
BETA = 300.0


def tiny_net(*, moved: bool = True) -> tuple[SD3Backbone, SD3Adapters]:
    """A backbone with adapters; `moved` ones already change what it computes."""
    net = SD3Backbone(tiny_transformer())
    adapters = add_adapters(net.transformer, LoraConfig(rank=2), field="dpo.lora")
    if moved:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net, adapters


def pairs_of(step: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(step)
    winners, losers = (torch.randn(count, 4, 8, 12, generator=generator) for _ in range(2))
    tokens = torch.randn(count, 5, 24, generator=generator)
    pooled = torch.randn(count, 24, generator=generator)
    return winners, losers, Conditioning(tokens, pooled, null_tokens=7)


def make_trainer(**changes) -> tuple[DpoTrainer, SD3Adapters]:
    config = DpoConfig(
        **{
            "steps": 12,
            "global_batch": 4,
            "precision": "float32",
            "learning_rate": 3e-3,
            "beta": BETA,
            "seed": 3,
        }
        | changes
    )
    net, adapters = tiny_net(moved=False)
    return DpoTrainer(net.train(), adapters.off, config, CPU), adapters


def oracle(net, base, winners, losers, conditioning, sigma, noise, beta):
    """Wallace et al. 2023, equation 14, for a velocity, one pair at a time: nothing shared with the
    implementation but the nets. `base` has no adapters at all.
    """
    losses = []
    for p in range(len(winners)):
        errors = {}
        for side, x0 in (("w", winners[p]), ("l", losers[p])):
            x_t = (1 - sigma[p]) * x0 + sigma[p] * noise[p]
            target = noise[p] - x0
            for name, model in (("now", net), ("ref", base)):
                with torch.set_grad_enabled(name == "now"):
                    v = model.velocity(x_t[None], sigma[p][None], conditioning.select([p]))[0]
                errors[side, name] = ((target - v) ** 2).sum() / target.numel()
        gained = errors["w", "now"] - errors["w", "ref"]
        lost = errors["l", "now"] - errors["l", "ref"]
        losses.append(-torch.log(torch.sigmoid(-beta / 2 * (gained - lost))))
    return torch.stack(losses).mean()


def test_loss_and_gradients_equal_plain_autograd():
    net, adapters = tiny_net()
    base = SD3Backbone(tiny_transformer())
    winners, losers, conditioning = pairs_of(0)
    sigma, noise = torch.tensor([0.9, 0.2, 0.55, 1.0]), torch.randn(winners.shape)
    trained = [p for p in net.parameters() if p.requires_grad]
    expected = oracle(net, base, winners, losers, conditioning, sigma, noise, BETA)
    gradients = torch.autograd.grad(expected, trained, allow_unused=True)
    draws = PairDraws(sigma, noise)
    with torch.no_grad(), adapters.off():
        reference = pair_errors(net, winners, losers, conditioning, draws)
    errors = pair_errors(net, winners, losers, conditioning, draws)
    loss = preference_loss(preference_margin(errors, reference, BETA))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert abs(loss.item() - math.log(2)) > 0.05
    loss.backward()
    compared = 0
    for parameter, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=2e-3)
        compared += gradient.abs().sum() > 0
    assert compared > 40
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_an_update_takes_the_step_that_the_oracle_gives():
    """The whole update: draws, reference, gradients and AdamW's first step."""
    trainer, _ = make_trainer(clip_norm=1e9)
    twin, _ = tiny_net(moved=False)
    base = SD3Backbone(tiny_transformer())
    batch = pairs_of(1)
    draws = draw_pairs(3, 0, range(4), batch[0].shape[1:])
    loss = oracle(twin, base, *batch, draws.sigma_P, draws.noise_PCHW, BETA)
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    loss.backward()
    torch.optim.AdamW(trained.values(), lr=3e-3, weight_decay=0.0).step()
    metrics = trainer.update(*batch)
    assert metrics["loss"] == pytest.approx(math.log(2))
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == 0
    assert metrics["winner_error"] == pytest.approx(metrics["winner_reference_error"])
    moved = 0
    for name, adapter in trainer.adapters.items():
        if trained[name].grad is not None and trained[name].grad.abs().max() > 1e-5:
            torch.testing.assert_close(adapter, trained[name], atol=3e-4, rtol=1e-3)
            moved += 1
    assert moved > 10


def test_without_adapters_the_net_is_its_reference():
    net, adapters = tiny_net()
    base = SD3Backbone(tiny_transformer())
    x, sigma, conditioning = pairs_of(2)[0], torch.full((4,), 0.6), pairs_of(2)[2]
    with torch.no_grad():
        expected = base.velocity(x, sigma, conditioning)
        with adapters.off():
            torch.testing.assert_close(net.velocity(x, sigma, conditioning), expected)
        assert (net.velocity(x, sigma, conditioning) - expected).abs().max() > 1e-2
        adapters.scale(0.0)
        torch.testing.assert_close(net.velocity(x, sigma, conditioning), expected)


def test_winner_and_loser_get_the_same_noise_at_the_same_level():
    """Bug: draw the noise for the 2P pictures instead of the P pairs."""
    seen = []

    class Recording:
        def velocity(self, x, sigma, conditioning):
            seen.append((x, sigma))
            return torch.zeros_like(x)

    winners, _, conditioning = pairs_of(0)
    draws = draw_pairs(0, 0, range(4), winners.shape[1:])
    errors = pair_errors(Recording(), winners, winners, conditioning, draws)
    ((x, sigma),) = seen
    assert torch.equal(x[:4], x[4:]) and torch.equal(sigma[:4], sigma[4:])
    assert torch.equal(errors.winner_P, errors.loser_P)


def test_draws_depend_on_seed_step_and_slot_alone():
    shape = (4, 8, 8)
    whole, first, second = (
        draw_pairs(7, 3, slots, shape) for slots in (range(8), range(4), range(4, 8))
    )
    assert torch.equal(whole.noise_PCHW, torch.cat([first.noise_PCHW, second.noise_PCHW]))
    assert torch.equal(whole.sigma_P, torch.cat([first.sigma_P, second.sigma_P]))
    assert torch.pdist(whole.noise_PCHW.flatten(1)).min() > 1
    for other in (draw_pairs(7, 4, range(8), shape), draw_pairs(8, 3, range(8), shape)):
        assert not torch.equal(other.noise_PCHW, whole.noise_PCHW)


def test_the_teacher_is_tuned_at_sd3s_levels_and_the_student_at_its_own():
    levels = draw_pairs(0, 0, range(4000), (1, 1, 1)).sigma_P
    normal = levels.logit()
    assert normal.mean().item() == pytest.approx(0, abs=0.05)
    assert normal.std().item() == pytest.approx(1, abs=0.05)
    own = draw_pairs(0, 0, range(400), (1, 1, 1), GRID).sigma_P
    shares = [(own == level).float().mean().item() for level in GRID]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0.17


def test_accumulation_equals_one_batch():
    whole, parts = make_trainer()[0], make_trainer(micro_batch=2)[0]
    for step in range(3):
        expected, found = whole.update(*pairs_of(step)), parts.update(*pairs_of(step))
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-4)
    for name, adapter in whole.adapters.items():
        torch.testing.assert_close(parts.adapters[name], adapter, atol=2e-3, rtol=0)


def test_only_adapters_move_and_the_winners_win():
    trainer, _ = make_trainer(steps=30, learning_rate=1e-2, warmup_updates=2)
    base = {n: p.clone() for n, p in trainer.net.named_parameters() if not p.requires_grad}
    first = trainer.update(*pairs_of(0))
    rows = [trainer.update(*pairs_of(0)) for _ in range(29)]
    assert rows[-1]["loss"] < 0.5 * first["loss"]
    assert rows[-1]["accuracy"] == 1 and rows[-1]["margin"] > 0
    gaps = [
        (r["winner_error"] - r["winner_reference_error"])
        - (r["loser_error"] - r["loser_reference_error"])
        for r in rows
    ]
    assert rows[-1]["margin"] == pytest.approx(-BETA / 2 * gaps[-1], rel=1e-2)
    assert trainer.done
    assert all(torch.equal(p, base[n]) for n, p in trainer.net.named_parameters() if n in base)


def test_adapters_are_float32_on_a_base_in_bfloat16():
    net = SD3Backbone(tiny_transformer().to(torch.bfloat16))
    adapters = add_adapters(net.transformer, LoraConfig(rank=2), field="dpo.lora")
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    config = DpoConfig(global_batch=4, precision="bfloat16", beta=BETA, learning_rate=1e-2)
    trainer = DpoTrainer(net.train(), adapters.off, config, CPU)
    losses = [trainer.update(*pairs_of(0))["loss"] for _ in range(8)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_first_weights():
    def first(seed: int) -> torch.Tensor:
        net = tiny_transformer()
        add_adapters(net, LoraConfig(rank=2), field="dpo.lora", seed=seed)
        return next(p for n, p in net.named_parameters() if "lora_A" in n).detach()

    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = first(1)
    torch.manual_seed(9)
    assert torch.equal(one, first(1)) and not torch.equal(one, first(2))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_adapters_give_the_same_bytes(tmp_path):
    _, adapters = tiny_net()
    for i in range(8):
        adapters.save(tmp_path / str(i))
    files = [next((tmp_path / str(i)).iterdir()) for i in range(8)]
    assert {file.name for file in files} == {"pytorch_lora_weights.safetensors"}
    assert len({file.read_bytes() for file in files}) == 1


def test_divergence_leaves_the_adapters_as_they_were():
    trainer, _ = make_trainer()
    before = {n: p.clone() for n, p in trainer.adapters.items()}
    winners, losers, conditioning = pairs_of(0)
    with pytest.raises(TrainingDiverged, match="update 0"):
        trainer.update(winners * float("nan"), losers, conditioning)
    assert all(torch.equal(p, before[n]) for n, p in trainer.adapters.items())


def looked_at(step: int = 90):
    """Two batches of held-out pairs, with their slots."""
    return [(range(0, 3), pairs_of(step, 3)), (range(3, 4), pairs_of(step + 1, 1))]


def test_a_look_is_a_mean_over_pairs_with_fixed_noise():
    trainer, _ = make_trainer()
    first = trainer.look(looked_at())
    assert first["held_out_loss"] == pytest.approx(math.log(2))
    trainer.update(*pairs_of(0))
    second, third = trainer.look(looked_at()), trainer.look(looked_at())
    assert second == third != first
    assert trainer.net.training
    by_hand = []
    for slots, pairs in looked_at():
        draws = draw_pairs(3, "look", slots, pairs[0].shape[1:])
        with torch.no_grad():
            errors = pair_errors(trainer.net, *pairs, draws)
            with trainer.reference():
                reference = pair_errors(trainer.net, *pairs, draws)
        by_hand.append(preference_margin(errors, reference, BETA))
    margins = torch.cat(by_hand)
    assert second["held_out_margin"] == pytest.approx(margins.mean().item(), rel=1e-3, abs=1e-5)
    assert second["held_out_loss"] == pytest.approx(preference_loss(margins).item(), rel=1e-4)
    assert second["held_out_accuracy"] == (margins > 0).float().mean().item()


def test_early_stop_keeps_the_best_adapters():
    trainer, _ = make_trainer(patience=2, learning_rate=1e-2, steps=100)
    losers_first = [(slots, (b[1], b[0], b[2])) for slots, b in looked_at(0)]
    history = []
    while not trainer.done:
        trainer.update(*pairs_of(0, 4))
        loss = trainer.look(losers_first)["held_out_loss"]
        history.append((loss, {n: p.clone() for n, p in trainer.adapters.items()}))
    assert trainer.stopped_early and 3 <= trainer.step < 100
    best = min(range(len(history)), key=lambda i: history[i][0])
    assert trainer.best_step == best + 1 == trainer.step - 2
    last = history[-1][1]
    assert any(not torch.equal(p, last[n]) for n, p in trainer.best.items())
    trainer.take_best()
    assert all(torch.equal(p, history[best][1][n]) for n, p in trainer.adapters.items())


def test_without_looks_the_last_adapters_are_kept():
    trainer, _ = make_trainer()
    trainer.update(*pairs_of(0))
    last = {n: p.clone() for n, p in trainer.adapters.items()}
    trainer.take_best()
    assert all(torch.equal(p, last[n]) for n, p in trainer.adapters.items())


def tune(trainer: DpoTrainer, stop: int) -> list[dict[str, float]]:
    rows = []
    while trainer.step < stop:
        rows.append(trainer.update(*pairs_of(trainer.step)))
        if trainer.step % 2 == 0:
            rows.append(trainer.look(looked_at()))
    return rows


def test_a_resumed_trainer_repeats_an_undisturbed_one_exactly(tmp_path):
    changes = {"warmup_updates": 8, "patience": 9, "micro_batch": 2}
    undisturbed, _ = make_trainer(**changes)
    expected = tune(undisturbed, 10)
    stopped, _ = make_trainer(**changes)
    rows = tune(stopped, 5)
    stopped.save(tmp_path / "state")
    resumed, _ = make_trainer(**changes)
    with torch.no_grad():  # a resumed run must not lean on its first weights
        for adapter in resumed.adapters.values():
            adapter.add_(1.0)
    resumed.load(tmp_path / "state")
    assert resumed.step == 5
    rows += tune(resumed, 10)
    assert rows == expected
    for name in ("best_loss", "best_step", "misses"):
        assert getattr(resumed, name) == getattr(undisturbed, name)
    for part in ("adapters", "best"):
        for name, value in getattr(undisturbed, part).items():
            assert torch.equal(getattr(resumed, part)[name], value)


def test_the_watch_warns_of_errors_that_grow_together_and_of_spikes():
    row = {
        "loss": 0.5,
        "winner_error": 1.2,
        "winner_reference_error": 1.0,
        "loser_error": 1.3,
        "loser_reference_error": 1.0,
    }
    watch = TuningWatch()
    said = [text for _ in range(60) for text in watch.observe(row)]
    assert len(said) == 1 and "grow together" in said[0] and "120%" in said[0]
    assert "leapt to 3.00" in watch.observe({**row, "loss": 3.0})[0]
    calm = TuningWatch()
    sane = {**row, "winner_error": 0.9}
    assert not [text for _ in range(60) for text in calm.observe(sane)]


def _ranks(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    rows = _two_updates(rank, 2)
    if rank == 0:
        Path(out).write_text(json.dumps(rows))
    distributed.destroy_process_group()


def _two_updates(rank: int, world: int) -> list[dict[str, float]]:
    trainer, _ = make_trainer(workers=world)
    share = 4 // world
    rows = []
    for step in range(2):
        winners, losers, conditioning = pairs_of(step)
        own = slice(rank * share, (rank + 1) * share)
        rows.append(trainer.update(winners[own], losers[own], conditioning.select(own)))
        rows.append(trainer.look(looked_at()[rank::world]))
    return rows


def test_two_ranks_repeat_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_ranks, (port, str(tmp_path / "rows.json")), nprocs=2)
    found = json.loads((tmp_path / "rows.json").read_text())
    for row, expected in zip(found, _two_updates(0, 1), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_the_best_scale_is_the_choosers_and_of_equals_the_smallest():
    rows = [
        {"scale": 0.0, "hps": 9.0, "pick": 0.0},
        {"scale": 0.5, "hps": 2.0, "pick": 5.0},
        {"scale": 0.75, "hps": 3.0, "pick": 1.0},
        {"scale": 1.0, "hps": 3.0, "pick": 9.0},
    ]
    assert chosen_scale(rows, [0.5, 0.75, 1.0], "hps", 1) == 0.75
    assert chosen_scale(rows, [0.5, 0.75, 1.0], "hps", -1) == 0.5
    assert chosen_scale(rows, [0.0, 0.5], "hps", 1) == 0.0


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


class FakeRun:
    """Ray Train's part, in this process: checkpoints in a folder, and a death after `lives`
    saves.
    """

    rank, world, cpus, gpus = 0, 1, 2, 0

    def __init__(self, folder: Path, lives: int) -> None:
        self.folder, self.lives = folder, lives

    def checkpoint_folders(self):
        yield from sorted(self.folder.glob("*"), reverse=True)

    def save(self, metrics, fill):
        path = self.folder / f"{len(list(self.folder.glob('*'))):06d}"
        path.mkdir(parents=True)
        fill(path)
        self.lives -= 1
        if self.lives == 0:
            raise KeyboardInterrupt


def fake_training(folder: Path, lives: int, calls: list):
    @contextlib.contextmanager
    def train_on_ray(context, worker, settings, plan):
        run = FakeRun(folder, lives)
        calls.append("resumed" if list(run.checkpoint_folders()) else "new")
        worker(run, settings)
        last = sorted(folder.glob("*"))[-1]
        yield last, 2.0

    return train_on_ray


def scales_in_process(lives: int, calls: list):
    """`map_shards` without Ray; a death after `lives` scales."""

    def run(context, shards, build, pool, unit="shards"):
        from pipeline.base.shards import finished_shards

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
    lives: int = 99,
    scales: int = 99,
    report=lambda *row: None,
    **sections,
):
    """Run prompts, a student, pairs and `dpo` in this process; returns the artifact and what was
    done.
    """
    put_stand_ins(monkeypatch)
    monkeypatch.setattr(scale_sweep, "open_score", open_stand_in)
    monkeypatch.setattr(scale_sweep, "worker_devices", lambda pool: 1.0)
    config = pairs_config(model, store, dpo=TUNING, **sections)
    inputs = {name: context_of(name, config).store.find(name, "k") for name in ("prompts", "pairs")}
    student = context_of("dpo", config).store.find("distill", "k")
    if inputs["pairs"] is None:
        inputs["prompts"], student = made_prompts(config), made_student(config)
        inputs["pairs"] = made_pairs(
            config, inputs["prompts"], student if config.pairs.model == "student" else None
        )
    context, calls = context_of("dpo", config, distill=student, **inputs), []
    context = dataclasses.replace(context, report=report)
    folder = store.parent / f"{store.name}-training"
    monkeypatch.setattr(dpo, "train_on_ray", fake_training(folder, lives, calls))
    monkeypatch.setattr(scale_sweep, "map_shards", scales_in_process(scales, calls))
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
    assert undisturbed.verify(contents=True) == []
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
    """Digests of all files but TensorBoard's, which hold times, and the configuration of the
    transformer, in which diffusers writes where it was loaded from.
    """
    apart = ("tensorboard/", "model/transformer/config.json")
    return {f.path: f.sha256 for f in artifact.manifest.files if not f.path.startswith(apart)}


def test_killed_and_resumed_gives_the_same_result_and_does_nothing_twice(
    undisturbed, tiny_sd3, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch, lives=1)
    assert made is None and calls == ["new"]
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch, scales=1)
    assert made is None and calls == ["resumed", "shards/scales/000"]
    made, calls = tuned_stage(tiny_sd3, store, monkeypatch)
    assert calls == ["shards/scales/001", "shards/scales/002"], "no training, one scale less"
    assert contents(made) == contents(undisturbed)
    assert made.manifest.details == undisturbed.manifest.details
    assert made.manifest.metrics == undisturbed.manifest.metrics


def test_an_early_stop_ends_the_stage_with_the_best_adapters(tiny_sd3, tmp_path, monkeypatch):
    made_by = []

    class FirstIsBest(dpo.DpoTrainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made_by.append(self)

        def look(self, batches):
            metrics = super().look(batches)
            self.best_loss = min(self.best_loss, -1.0)
            return metrics

    monkeypatch.setattr(dpo, "DpoTrainer", FirstIsBest)
    monkeypatch.setitem(TUNING, "patience", 1)
    said = []
    made, _ = tuned_stage(
        tiny_sd3, tmp_path / "store", monkeypatch, report=lambda *row: said.append(row[0])
    )
    folder = Path(made.store.path(made.folder))
    assert made.manifest.counts["updates"] == 4
    assert any("stopped after update 4" in text and "update 2" in text for text in said)
    saved = load_file(folder / "lora" / "pytorch_lora_weights.safetensors")
    (trainer,) = made_by
    assert len(saved) == len(trainer.best)
    for name, best in trainer.best.items():
        assert torch.equal(saved[name.replace(".default", "")], best)


def test_worse_than_without_adapters_is_a_warning(tiny_sd3, tmp_path, monkeypatch):
    sweep = scale_sweep.Sweep("attributes", [], 0.5, -0.25, [], 0.0)
    monkeypatch.setattr(dpo, "try_scales", lambda context: sweep)
    said = []
    made, _ = tuned_stage(
        tiny_sd3, tmp_path / "store", monkeypatch, report=lambda *row: said.append(row[0])
    )
    assert any(text.startswith("warning: by attributes the student is better") for text in said)
    assert made.manifest.metrics["chooser_gain"] == -0.25


def test_the_student_is_tuned_on_its_own_levels(tiny_sd3, tmp_path, monkeypatch):
    seen = []
    original = dpo.DpoTrainer

    def recording(net, reference, config, device, levels):
        seen.append(levels)
        return original(net, reference, config, device, levels)

    monkeypatch.setattr(dpo, "DpoTrainer", recording)
    made, _ = tuned_stage(
        tiny_sd3, tmp_path / "store", monkeypatch, pairs={"model": "student", "student_steps": 4}
    )
    assert seen == [GRID]
    assert made.manifest.details["tuned"] == "student"


def test_too_few_pairs_for_a_batch_is_one_clear_sentence(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "global_batch", 64)
    with pytest.raises(ConfigError, match=r"dpo\.global_batch is 64.*32x32: \d+.*pairs\.prompts"):
        tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch)


def test_divergence_is_one_clear_sentence(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNING, "learning_rate", 1e30)
    with pytest.raises(StageFailed, match=r"dpo: update \d.*Lower dpo\.learning_rate"):
        tuned_stage(tiny_sd3, tmp_path / "store", monkeypatch)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_looks_visit_every_chosen_pair_with_every_noise_once(world, monkeypatch):
    class Data:
        def __init__(self):
            self.sizes = {"held_out": {"32x32": 7, "48x16": 4}}

        def batch(self, split, bucket, rows):
            assert split == "held_out"
            return bucket, tuple(rows), None

    monkeypatch.setattr(dpo, "HELD_OUT_PAIRS", 6)
    config = DpoConfig(global_batch=6, workers=world)
    found = [
        (slots, *batch)
        for rank in range(world)
        for slots, batch in dpo.held_out_batches(Data(), config, rank, world)
    ]
    slots = sorted(slot for part, *_ in found for slot in part)
    assert slots == list(range((4 + 2) * dpo.HELD_OUT_DRAWS))
    seen = sorted((bucket, row) for _, bucket, rows, _ in found for row in rows)
    chosen = [("32x32", row) for row in (0, 2, 4, 6)] + [("48x16", row) for row in (0, 2)]
    assert seen == sorted(chosen * dpo.HELD_OUT_DRAWS)
