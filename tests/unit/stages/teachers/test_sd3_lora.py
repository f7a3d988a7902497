"""Low-rank adapters: what they train, and how stock diffusers loads them."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from schemas.config import (
    LoraConfig,
    TeacherConfig,
)
from schemas.errors import ConfigError
from stages.teachers import open_teacher
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import add_adapters
from tests.support.pairs import EVEN
from tests.support.preference import pairs_of, tiny_net
from tests.support.tiny_sd3 import tiny_transformer


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


def test_adapters_alone_are_trained(tiny_sd3):
    teacher = open_teacher(TeacherConfig(model=str(tiny_sd3), use_t5=False, dtype="float32"))
    lora = LoraConfig(rank=2)
    student = teacher.backbone(dtype=torch.float32, lora=lora)
    names = [name for name, p in student.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    blocks = student.transformer.transformer_blocks
    for layer in (blocks[0].attn.to_q, blocks[0].ff.net[2], blocks[0].attn.add_k_proj):
        assert hasattr(layer, "lora_A")


def test_an_adapter_student_is_saved_merged_and_as_diffusers_lora(tiny_sd3, tmp_path):
    teacher = open_teacher(TeacherConfig(model=str(tiny_sd3), use_t5=False, dtype="float32"))
    lora = LoraConfig(rank=2, alpha=4)
    student = teacher.backbone(dtype=torch.float32, lora=lora)
    generator = torch.Generator().manual_seed(0)

    def fill(backbone):
        adapters = [p for p in backbone.parameters() if p.requires_grad]
        with torch.no_grad():
            for adapter in adapters:
                adapter.copy_(torch.randn(adapter.shape, generator=generator) * 0.1)

    fill(student)
    generator.manual_seed(0)
    teacher.save_student(tmp_path, fill, EVEN, lora=lora)
    shape = (1, 4, 8, 12)
    x, sigma = torch.randn(shape, generator=generator), torch.tensor([0.7])
    conditioning = teacher.encode_prompts(["a dog"])
    expected = student.velocity(x, sigma, conditioning)
    merged = open_teacher(TeacherConfig(model=str(tmp_path), use_t5=False, dtype="float32"))
    found = merged.backbone().velocity(x, sigma, conditioning)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    base = teacher.backbone().velocity(x, sigma, conditioning)
    assert (expected - base).abs().max() > 1e-2
    stock = StableDiffusion3Pipeline.from_pretrained(
        tiny_sd3, text_encoder_3=None, tokenizer_3=None
    )
    stock.load_lora_weights(tmp_path / "lora")
    pieces = {
        "hidden_states": x,
        "timestep": 1000 * sigma,
        "pooled_projections": conditioning.pooled_BP,
        "encoder_hidden_states": torch.nn.functional.pad(
            conditioning.tokens_BLD, (0, 0, 0, conditioning.null_tokens)
        ),
    }
    with torch.no_grad():
        torch.testing.assert_close(
            stock.transformer(**pieces, return_dict=False)[0], expected, atol=1e-4, rtol=1e-3
        )


def test_an_adapter_on_no_layer_is_refused(tiny_sd3):
    teacher = open_teacher(TeacherConfig(model=str(tiny_sd3), use_t5=False))
    with pytest.raises(ConfigError, match=r"distill\.lora\.targets: no layer .* to_qq"):
        teacher.backbone(lora=LoraConfig(targets=["to_qq"]))
