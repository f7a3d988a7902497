"""The pieces of LADD: levels, heads, losses, batch plan, samplers, average, state, health."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import DiscriminatorConfig, DistillConfig, RenoiseConfig, StudentTimeConfig
from stages.ladd.backbone import Conditioning
from stages.ladd.batch_plan import BatchPlan, EmptyPlanError
from stages.ladd.ema import ExponentialAverage
from stages.ladd.flow import draw
from stages.ladd.heads import DiscriminatorHeads, channel_moments, time_embedding
from stages.ladd.losses import fake_loss, real_loss, student_loss
from stages.ladd.sampling import initial_noise, student_sigmas
from stages.ladd.trainer import (
    HealthWatch,
    LaddTrainer,
    TrainingDiverged,
    diversity_warnings,
)
from stages.shapes_world.state_file import StateFileError, load_state, save_state

CPU = torch.device("cpu")


def levels(step: int, count: int = 4000, **renoise):
    time = StudentTimeConfig(warmup_steps=10)
    shape = torch.Size((1, 1, 1))
    return draw(0, step, range(count), shape, time, RenoiseConfig(**renoise), student_step=step)


def test_student_levels_follow_the_probabilities_and_their_warm_up():
    warm, cold = levels(10).student_sigma_B, levels(9).student_sigma_B
    shares = [(warm == level).float().mean().item() for level in (1.0, 0.75, 0.5, 0.25)]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.03)
    shares = [(cold == level).float().mean().item() for level in (1.0, 0.75, 0.5, 0.25)]
    assert shares == pytest.approx([0, 0, 0.5, 0.5], abs=0.03)


def test_renoise_level_is_logit_normal_and_biased_to_high_noise():
    logits = torch.logit(levels(50).renoise_sigma_B)
    assert logits.mean().item() == pytest.approx(1.0, abs=0.06)
    assert logits.std().item() == pytest.approx(1.0, abs=0.06)
    assert levels(50, mean=-2.0).renoise_sigma_B.median() < 0.2


def test_hinge_losses_by_hand():
    real, fake = [torch.tensor([[[2.0, 0.5]]])], [torch.tensor([[[-2.0, 0.0]]])]
    assert real_loss(real).item() == pytest.approx((0 + 0.5) / 2)
    assert fake_loss(fake).item() == pytest.approx((0 + 1) / 2)
    assert student_loss(fake).item() == pytest.approx(1.0)


def test_every_tap_counts_alike_whatever_its_size():
    big, small = torch.full((1, 8, 8), 3.0), torch.full((1, 2, 2), -1.0)
    assert student_loss([big, small]).item() == pytest.approx(-1.0)


def test_heads_are_conditioned_on_noise_level_and_text_and_see_space():
    torch.manual_seed(0)
    heads = DiscriminatorHeads([16, 16], 24, DiscriminatorConfig(channels=8))
    maps = [torch.randn(2, 16, 4, 6) for _ in range(2)]
    sigma, pooled = torch.tensor([0.2, 0.9]), torch.randn(2, 24)
    out = heads(maps, sigma, pooled)
    assert [x.shape for x in out] == [(2, 4, 6)] * 2
    assert not torch.allclose(out[0], heads(maps, sigma.flip(0), pooled)[0])
    assert not torch.allclose(out[0], heads(maps, sigma, pooled.flip(0))[0])
    moved = maps[0].clone()
    moved[:, :, 0, 0] += 5
    changed = (heads.heads[0](moved, sigma, pooled) - out[0]).abs()
    assert (changed[:, :3, :3].mean((1, 2)) > 1.5 * changed[:, :, 4:].mean((1, 2))).all()


def test_heads_do_not_mix_samples():
    torch.manual_seed(0)
    heads = DiscriminatorHeads([16], 24, DiscriminatorConfig(channels=8))
    x, sigma, pooled = torch.randn(3, 16, 4, 4), torch.rand(3), torch.randn(3, 24)
    whole = heads([x], sigma, pooled)[0]
    torch.testing.assert_close(whole[1:2], heads([x[1:2]], sigma[1:2], pooled[1:2])[0])


def test_calibrated_heads_see_every_channel_alike():
    torch.manual_seed(0)
    scales = torch.logspace(-2, 3, 16)[:, None, None]
    maps = [30 * scales + scales * torch.randn(6, 16, 4, 6) for _ in range(2)]
    heads = DiscriminatorHeads([16, 16], 24, DiscriminatorConfig(channels=8))
    parts = [channel_moments([x[rows] for x in maps]) for rows in (slice(0, 2), slice(2, 6))]
    heads.calibrate(sum(parts))
    for head, x in zip(heads.heads, maps, strict=True):
        seen = head.norm(x).transpose(0, 1).flatten(1)
        torch.testing.assert_close(seen.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
        torch.testing.assert_close(seen.std(1, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_a_channel_that_never_moves_stays_finite():
    heads = DiscriminatorHeads([4], 24, DiscriminatorConfig(channels=8))
    still = torch.full((2, 4, 3, 3), 7.0)
    heads.calibrate(channel_moments([still]))
    assert torch.equal(heads.heads[0].norm(still), torch.zeros_like(still))


def test_time_embedding_tells_levels_apart():
    embedded = time_embedding(torch.linspace(0, 1, 101))
    assert embedded.shape == (101, 32)
    assert torch.pdist(embedded).min() > 0.01


@given(
    sizes=st.dictionaries(
        st.sampled_from(["64x64", "96x40", "40x96"]), st.integers(0, 40), min_size=1
    ),
    batch=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_an_epoch_of_the_plan_sees_each_sample_at_most_once(sizes, batch, seed):
    if all(size < batch for size in sizes.values()):
        with pytest.raises(EmptyPlanError, match="global_batch"):
            BatchPlan(sizes, batch, seed)
        return
    plan = BatchPlan(sizes, batch, seed)
    seen = [
        (bucket, row)
        for step in range(plan.batches_per_epoch)
        for bucket, rows in [plan.batch(step)]
        for row in rows
    ]
    assert len(seen) == len(set(seen)) == sum(size // batch * batch for size in sizes.values())
    assert all(0 <= row < sizes[bucket] for bucket, row in seen)


def test_plan_is_a_pure_function_of_the_step():
    straight, jumping = (BatchPlan({"64x64": 50, "96x40": 33}, 8, 3) for _ in range(2))
    order = [straight.batch(step) for step in range(30)]
    for step in (29, 0, 17, 5, 29):
        bucket, rows = jumping.batch(step)
        assert bucket == order[step][0] and np.array_equal(rows, order[step][1])
    assert not np.array_equal(order[0][1], order[straight.batches_per_epoch][1])


def test_plan_reports_buckets_that_cannot_fill_a_batch():
    assert BatchPlan({"64x64": 50, "96x40": 3}, 8, 3).short_buckets == ["96x40"]


def test_parts_of_a_batch_know_the_samples_behind_them():
    plan = BatchPlan({"64x64": 50, "96x40": 33}, 8, 3)
    for step in range(10):
        bucket, rows = plan.batch(step)
        for slots, behind in ((range(3), rows[3]), (range(3, 8), rows[0]), (range(8), rows[0])):
            name, part = plan.part(step, slots, more=1)
            assert name == bucket and list(part) == [*rows[slots], behind]
            assert list(plan.part(step, slots)[1]) == list(rows[slots])


def test_a_sample_does_not_depend_on_its_batch():
    together, _ = initial_noise([1, 2, 3], (4, 8, 8))
    alone, _ = initial_noise([2], (4, 8, 8))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, [1.0]), (2, [1.0, 0.25]), (4, [1.0, 0.75, 0.5, 0.25])]
)
def test_student_grid(steps, expected):
    assert student_sigmas([1.0, 0.75, 0.5, 0.25], steps) == pytest.approx(expected)


def test_average_follows_and_swaps_back():
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    average = ExponentialAverage(net, 0.5)
    torch.nn.init.ones_(net.weight)
    for step in range(20, 22):
        average.update(net, step)
    assert average.averages[0].item() == pytest.approx(0.75)
    average.swap_with(net)
    assert net.weight.item() == pytest.approx(0.75)
    average.swap_with(net)
    assert net.weight.item() == 1 and average.averages[0].item() == pytest.approx(0.75)


def test_state_file_round_trip_is_exact(tmp_path):
    state = {
        "a": torch.randn(3, dtype=torch.bfloat16),
        "n": {0: [1, 2.5, None, True], "t": torch.tensor(3)},
    }
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert torch.equal(loaded["a"], state["a"]) and loaded["a"].dtype == torch.bfloat16
    assert loaded["n"][0] == [1, 2.5, None, True] and torch.equal(loaded["n"]["t"], torch.tensor(3))
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_state_file_cut_short_is_named(tmp_path):
    save_state(tmp_path / "s.safetensors", {"a": torch.zeros(100)})
    content = (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(content[:200])
    with pytest.raises(StateFileError, match=r"s\.safetensors cannot be read"):
        load_state(tmp_path / "s.safetensors")


def test_state_file_refuses_objects(tmp_path):
    with pytest.raises(TypeError, match="set"):
        save_state(tmp_path / "s.safetensors", {"a": {1, 2}})


def make_trainer(backbones, **changes) -> LaddTrainer:
    options = {
        "global_batch": 4,
        "precision": "float32",
        "learning_rate": 1e-3,
        "steps": 8,
        "ema_decay": 0.9,
    }
    options |= {
        "student_time": {"warmup_steps": 1},
        "discriminator": {"channels": 8, "learning_rate": 1e-3, "head_start_steps": 1},
    }
    return LaddTrainer(*backbones, 24, DistillConfig.model_validate(options | changes), CPU)


def test_a_resumed_trainer_repeats_the_undisturbed_one(tiny_backbones, tiny_batch, tmp_path):
    import copy

    spare = copy.deepcopy(tiny_backbones)
    straight = make_trainer(tiny_backbones)
    first = [straight.update(*tiny_batch) for _ in range(2)]
    straight.save(tmp_path)
    expected = [straight.update(*tiny_batch) for _ in range(3)]
    resumed = make_trainer(spare)
    resumed.load(tmp_path)
    assert resumed.step == 2
    assert [resumed.update(*tiny_batch) for _ in range(3)] == expected
    assert "student_grad_norm" not in first[0] and "student_grad_norm" in first[1]


def test_accumulation_does_not_change_the_update(tiny_backbones, tiny_batch):
    import copy

    spare = copy.deepcopy(tiny_backbones)
    whole, parts = make_trainer(tiny_backbones), make_trainer(spare, micro_batch=1)
    for _ in range(3):
        expected, found = whole.update(*tiny_batch), parts.update(*tiny_batch)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_divergence_stops_training_and_leaves_the_weights(tiny_backbones, tiny_batch):
    trainer = make_trainer(tiny_backbones)
    trainer.update(*tiny_batch)
    before = [p.clone() for p in trainer.student.parameters()]
    latents, conditioning = tiny_batch
    with pytest.raises(TrainingDiverged, match="not a finite number"):
        trainer.update(latents * float("nan"), conditioning)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.student.parameters(), strict=True))
    assert trainer.step == 1


def test_the_students_rate_warms_up_and_falls_and_the_heads_keep_theirs(tiny_backbones, tiny_batch):
    trainer = make_trainer(tiny_backbones, warmup_updates=4, decay_share=0.5)
    rates: dict[str, list[float]] = {"student": [], "heads": []}
    for _ in range(trainer.config.total_steps):
        trainer.update(*tiny_batch)
        rates["student"].append(trainer.student_optimizer.param_groups[0]["lr"] / 1e-3)
        rates["heads"].append(trainer.heads_optimizer.param_groups[0]["lr"] / 1e-3)
    assert rates["student"] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    assert rates["heads"] == [1] * 9


def test_the_frozen_teacher_does_not_change(tiny_backbones, tiny_batch):
    teacher = tiny_backbones[1]
    before = [p.clone() for p in teacher.parameters()]
    trainer = make_trainer(tiny_backbones)
    for _ in range(3):
        trainer.update(*tiny_batch)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def healthy(**changes):
    logits = {"real_logit": 0.4, "fake_logit": -0.2}
    return {"student_loss": 0.2, "student_grad_norm": 1.0} | logits | changes


def test_health_watch_warns_once_of_collapse_and_of_drift():
    watch = HealthWatch()
    assert not any(watch.observe(healthy()) for _ in range(300))
    sure = healthy(real_logit=1.2, fake_logit=-1.4)
    warnings = [w for i in range(300) for w in watch.observe(sure)]
    assert len(warnings) == 1 and "collapse" in warnings[0]
    watch = HealthWatch()
    warnings = [w for i in range(400) for w in watch.observe(healthy(student_loss=i / 100))]
    assert len(warnings) == 1 and "losing" in warnings[0]
    watch = HealthWatch()
    for i in range(400):
        alone = healthy(real_logit=1.5, fake_logit=-1.5, student_loss=i / 100)
        del alone["student_grad_norm"]  # the heads' head start
        assert watch.observe(alone) == []


def test_diversity_below_half_of_the_teachers_is_told():
    assert diversity_warnings(1.0, 1.2) == []
    assert diversity_warnings(0.3, 1.0)[0].startswith("pictures of one prompt differ 30%")


def test_conditioning_selects_and_joins():
    one = Conditioning(torch.arange(6.0).view(3, 1, 2), torch.arange(3.0).view(3, 1), 5)
    joined = Conditioning.cat([one.select([2]), one.select(slice(0, 1))])
    assert joined.pooled_BP.flatten().tolist() == [2, 0] and joined.null_tokens == 5
