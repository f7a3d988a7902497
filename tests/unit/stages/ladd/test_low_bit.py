"""Frozen weights and moments in 8 bits, against their restored values in plain torch."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from schemas.config import DistillConfig, LoraConfig
from schemas.errors import ConfigError
from stages import distill
from stages.ladd.checkpoint import names_in
from stages.ladd.low_bit import LowBitLinear, quantize_blocks
from stages.ladd.optimizer import adamw, step
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import add_adapters
from tests.support.tiny_sd3 import make_tiny_config, tiny_transformer
from tests.support.trainers import plain_trainer

KINDS = {"int8": 1 / 127, "float8": 1 / 16}
"""The largest error of a weight: int8's, of its row's largest; float8's, of itself."""

BITS: tuple[Literal[32, 8], ...] = (32, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_that_of_its_restored_weights(kind):
    torch.manual_seed(0)
    layer = nn.Linear(24, 40).requires_grad_(False)
    low = LowBitLinear(layer, kind)
    assert low.codes.element_size() == 1
    restored = copy.deepcopy(layer)
    with torch.no_grad():
        restored.weight.copy_(low.codes.float() * low.scale)
        error = (restored.weight - layer.weight).abs()
        largest = layer.weight.abs().amax(1, keepdim=True)
        near = largest if kind == "int8" else layer.weight.abs() + 1e-2 * largest
        assert error.max() > 0 and (error <= KINDS[kind] * near).all()
    x = torch.randn(3, 5, 24, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    found, expected = low(x), restored(twin)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert low(x).dtype == torch.bfloat16
        torch.testing.assert_close(low(x).float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_no_copy_of_a_frozen_weight(kind):
    """Why the layer is not torchao's."""
    low = LowBitLinear(nn.Linear(32, 32).requires_grad_(False), kind)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low(torch.randn(4, 32, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {low.codes.data_ptr(), low.scale.data_ptr()}


def restored_twin(net: SD3Backbone) -> SD3Backbone:
    """The same net with plain layers that hold the restored weights."""
    twin = copy.deepcopy(net)
    for module in list(twin.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, LowBitLinear):
                plain = nn.Linear(*reversed(layer.codes.shape)).requires_grad_(False)
                plain.weight.copy_(layer.codes.float() * layer.scale)
                plain.bias = layer.bias
                setattr(module, name, plain)
    return twin


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_students_loss_passes_through_a_quantised_teacher(
    checkpointed, tiny_backbones, tiny_batch
):
    student, teacher = tiny_backbones
    quantize_blocks(teacher, "int8")
    teacher.checkpoint_blocks = checkpointed
    assert sum(isinstance(m, LowBitLinear) for m in teacher.modules()) == sum(
        type(m) is nn.Linear for m in student.blocks.modules()
    )
    twin = (copy.deepcopy(student), restored_twin(teacher))
    trainer, plain = plain_trainer(tiny_backbones), plain_trainer(twin)
    for _ in range(3):
        found, expected = trainer.update(*tiny_batch), plain.update(*tiny_batch)
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)
        assert found["student_grad_norm"] > 1e-3


def test_adapters_stay_float32_on_a_quantised_base(tiny_batch):
    net = SD3Backbone(tiny_transformer())
    adapters = add_adapters(net.transformer, LoraConfig(rank=2))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    quantize_blocks(net, "float8")
    assert {name for name, p in net.named_parameters() if p.requires_grad} == trained
    linear = [m for m in net.blocks.modules() if type(m) is nn.Linear]
    assert linear and all(m.weight.requires_grad for m in linear), "all others are quantised"
    latents, text = tiny_batch
    net.velocity(latents, torch.ones(4), text).sum().backward()
    with adapters.off(), torch.no_grad():
        off = net.velocity(latents, torch.ones(4), text)
    adapters.scale(0.0)
    torch.testing.assert_close(net.velocity(latents, torch.ones(4), text), off)


def test_a_row_of_zeros_stays_one():
    layer = nn.Linear(4, 2).requires_grad_(False)
    layer.weight.zero_()
    assert torch.equal(LowBitLinear(layer, "float8")(torch.ones(1, 4)), layer.bias[None])


def test_moments_in_8_bits_step_as_those_in_32():
    """With betas of (0, 0.99), on a weight that is quantised and one that is too small for it."""
    torch.manual_seed(0)
    config = DistillConfig(weight_decay=0.1)
    nets = [nn.Linear(64, 96)]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = [adamw(n.parameters(), config, bits) for n, bits in zip(nets, BITS, strict=True)]
    for _ in range(5):
        x = torch.randn(7, 64)
        for net, optimizer in zip(nets, optimizers, strict=True):
            net(x).square().mean().backward()
            step(optimizer, 1e-3)
            optimizer.zero_grad()
    torch.testing.assert_close(nets[1].bias, nets[0].bias)
    moved = (nets[1].weight - nets[0].weight).abs()
    assert 0 < moved.mean() < 1e-4


def test_8_bit_moments_are_saved_as_plain_tensors_and_restored_exactly(tiny_batch, tmp_path):
    nets = [SD3Backbone(tiny_transformer(width=32, layers=2)) for _ in range(2)]
    spare = copy.deepcopy(nets)
    options = {"optimizer_bits": 8, "steps": 8, "discriminator": {"channels": 8}}
    straight = plain_trainer(nets, **options)
    for _ in range(2):
        straight.update(*tiny_batch)
    straight.save(tmp_path)
    assert any(name.endswith(".exp_avg.codes") for name in names_in(tmp_path))
    expected = [straight.update(*tiny_batch) for _ in range(3)]
    resumed = plain_trainer(spare, **options)
    resumed.load(tmp_path)
    assert [resumed.update(*tiny_batch) for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frozen_weights": "int8", "shard_teacher": True}, "frozen_weights int8"),
        ({"frozen_weights": "int8", "lora": {}}, "frozen_weights int8"),
        ({"optimizer_bits": 8}, "optimizer_bits 8"),
    ],
)
def test_what_cannot_be_sharded_is_refused(options, named):
    DistillConfig.model_validate(options | {"shard_teacher": False})
    with pytest.raises(ValueError, match=named):
        DistillConfig.model_validate({"workers": 2, "shard_over": 2} | options)


def test_without_the_library_one_sentence_says_what_to_install(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "find_spec", lambda name: None)
    distill.check(make_tiny_config(tiny_sd3, tmp_path))
    with pytest.raises(ConfigError, match=r"pip install 'ladd-pipeline\[low-bit\]'"):
        distill.check(make_tiny_config(tiny_sd3, tmp_path, distill={"optimizer_bits": 8}))
