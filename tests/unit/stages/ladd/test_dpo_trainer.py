"""Preference tuning: updates against an oracle, exact resume, early stop, two ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from schemas.config import DpoConfig, LoraConfig
from stages.ladd.backbone import WithoutAdapters
from stages.ladd.dpo_loss import (
    draw_pairs,
    pair_errors,
    preference_loss,
    preference_margin,
)
from stages.ladd.dpo_trainer import DpoTrainer, TuningWatch
from stages.ladd.health import TrainingDiverged
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import SD3Adapters, add_adapters
from tests.support.preference import BETA, CPU, oracle, pairs_of, tiny_net
from tests.support.tiny_sd3 import tiny_transformer
from tests.support.training import on_ranks

pytestmark = pytest.mark.slow


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
    return DpoTrainer(net.train(), WithoutAdapters(net, adapters.off), config, CPU), adapters


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_update_takes_the_step_that_the_oracle_gives(shift):
    """The whole update: draws, reference, gradients and AdamW's first step."""
    trainer, _ = make_trainer(clip_norm=1e9, shift=shift)
    twin, _ = tiny_net(moved=False)
    base = SD3Backbone(tiny_transformer())
    batch = pairs_of(1)
    draws = draw_pairs(3, 0, range(4), batch[0].shape[1:])
    sigma_P = shift * draws.sigma_P / (1 - draws.sigma_P + shift * draws.sigma_P)
    loss = oracle(twin, base, *batch, sigma_P, draws.noise_PCHW, BETA)
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


def test_adapters_are_float32_on_a_base_in_bfloat16(monkeypatch):
    monkeypatch.setattr("stages.ladd.precision.cpu_has_bfloat16", lambda: True)
    net = SD3Backbone(tiny_transformer().to(torch.bfloat16))
    adapters = add_adapters(net.transformer, LoraConfig(rank=2), field="dpo.lora")
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    config = DpoConfig(global_batch=4, precision="bfloat16", beta=BETA, learning_rate=1e-2)
    trainer = DpoTrainer(net.train(), WithoutAdapters(net, adapters.off), config, CPU)
    losses = [trainer.update(*pairs_of(0))["loss"] for _ in range(8)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]


def test_an_update_that_is_not_finite_is_skipped_and_leaves_no_trace():
    trainer, _ = make_trainer()
    trainer.update(*pairs_of(0))
    before = {n: x.clone() for n, x in trainer._tensors().items() if n != "step"}
    winners, losers, conditioning = pairs_of(0)
    assert trainer.update(winners * float("nan"), losers, conditioning)["skipped"] == 1
    assert all(torch.equal(x, trainer._tensors()[n]) for n, x in before.items())
    assert trainer.step == 2
    assert "skipped" not in trainer.update(*pairs_of(1))


def test_a_look_that_is_not_finite_ends_the_training():
    trainer, _ = make_trainer()
    (slots, (winners, losers, text)), _ = looked_at()
    with pytest.raises(TrainingDiverged, match="update 0: held_out_loss is not a finite number"):
        trainer.look([(slots, (winners * float("nan"), losers, text))])


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
            reference = pair_errors(trainer.reference, *pairs, draws)
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
    said = [sign.text for _ in range(60) for sign in watch.observe(row)]
    assert len(said) == 1 and "grow together" in said[0] and "120%" in said[0]
    assert "jumped to 3.00" in watch.observe({**row, "loss": 3.0})[0].text
    assert watch.observe({"skipped": 1.0}) == []
    calm = TuningWatch()
    sane = {**row, "winner_error": 0.9}
    assert not [text for _ in range(60) for text in calm.observe(sane)]


def _ranks(rank: int, out: str) -> None:
    rows = _two_updates(rank, 2)
    if rank == 0:
        Path(out).write_text(json.dumps(rows))


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
    on_ranks(2, _ranks, str(tmp_path / "rows.json"))
    found = json.loads((tmp_path / "rows.json").read_text())
    for row, expected in zip(found, _two_updates(0, 1), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=2e-4)
