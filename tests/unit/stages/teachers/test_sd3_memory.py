"""The memory that `plan` foretells: counts of parameters are exact, and an update takes what is
said.
"""

from __future__ import annotations

import gc
import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.planning import Selection, make_plan
from schemas.config import DiscriminatorConfig, DistillConfig, LoraConfig
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.low_bit import quantize_blocks
from stages.teachers import model_costs
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_layers import adapter_parameters, parameters
from stages.teachers.sd3_memory import Shapes, head_parameters, update_memory
from stages.teachers.sd3_sharded import on_meta
from tests.support.command import ROOT
from tests.support.tiny_sd3 import make_tiny_config

SHAPES = Shapes(rows=64, columns=64, text=333, share=8, on_gpu=True)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/memory.py, which says the same on larger nets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("memory")


def geometry(**changes: Any) -> dict[str, Any]:
    return {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 8,
        "num_layers": 5,
        "attention_head_dim": 16,
        "num_attention_heads": 6,
        "joint_attention_dim": 40,
        "caption_projection_dim": 96,
        "pooled_projection_dim": 56,
        "pos_embed_max_size": 48,
        "qk_norm": None,
        "dual_attention_layers": (),
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 2)}],
)
def test_parameters_are_counted_exactly(changes):
    config, lora = geometry(**changes), LoraConfig(rank=3)
    plain, _ = on_meta(config, torch.float32)
    assert parameters(config) == sum(p.numel() for p in plain.parameters())
    adapted, _ = on_meta(config, torch.float32, lora)
    assert adapter_parameters(config, lora.rank, lora.targets) == sum(
        p.numel() for p in adapted.parameters() if p.requires_grad
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"taps": "last"},
        {"conditioned": False},
        {"convolutions": "1d"},
        {"standardized": False},
    ],
)
def test_parameters_of_the_heads_are_counted_exactly(changes):
    discriminator = DiscriminatorConfig(channels=24, **changes)
    heads = DiscriminatorHeads([96] * 5, 56, discriminator)
    found = sum(p.numel() for p in heads.parameters())
    assert head_parameters(geometry(), discriminator) == found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "checkpointed", "adapters", "mismatched prompts"])
def test_an_update_takes_the_memory_that_is_foretold(benchmark, name):
    """Within 15 % of all tensors that are alive at one time, as torch's profiler sees them."""
    allocated_peak = importlib.import_module("peak_memory").allocated_peak
    case = {
        "full": benchmark.Case(
            benchmark.geometry(4, 2),
            {"precision": "float32", "global_batch": 8, "discriminator": {"channels": 32}},
            rows=12,
            columns=16,
            text=20,
        ),
        "checkpointed": benchmark.Case(
            benchmark.geometry(5, 3, dual_attention_layers=(0, 1)),
            {"global_batch": 12, "micro_batch": 6, "checkpoint_blocks": True},
            rows=6,
            columns=16,
            text=30,
            null_tokens=0,
            teacher_dtype="bfloat16",
        ),
        "adapters": benchmark.Case(
            benchmark.geometry(4, 2, qk_norm=None),
            {"global_batch": 6, "lora": {"rank": 8}},
            rows=16,
            columns=10,
            text=16,
            teacher_dtype="bfloat16",
        ),
        "mismatched prompts": benchmark.Case(
            benchmark.geometry(6, 1),
            {
                "global_batch": 10,
                "checkpoint_blocks": True,
                "objective": {"r1_weight": 1.0, "mismatched_share": 0.5},
                "discriminator": {"channels": 96},
            },
            rows=12,
            columns=12,
            text=12,
        ),
    }[name]
    gc.collect()
    found, expected = allocated_peak(case.train), case.estimate()
    assert expected.total == pytest.approx(found, rel=0.15)
    # And not by the weights alone: what an update itself takes is nearer still.
    lasting = expected.total - expected.working
    near = 0.05 if name in ("full", "adapters") else 0.15
    assert expected.working == pytest.approx(found - lasting, rel=near)


def test_what_saves_memory_says_so():
    config = geometry(num_layers=12, attention_head_dim=64, qk_norm="rms_norm")
    plain = DistillConfig(global_batch=8)

    def memory(**changes: Any):
        return update_memory(config, "bfloat16", plain.model_copy(update=changes), SHAPES)

    usual = memory()
    assert memory(ema_device="cpu").average == 0 < usual.average
    assert memory(checkpoint_blocks=True).working < 0.5 * usual.working
    assert memory(micro_batch=2).working < 0.5 * usual.working
    sharded = memory(workers=8, shard_over=8)
    assert sharded.average == usual.average // 8
    assert memory(workers=8, shard_over=8, shard_teacher=True).weights < sharded.weights
    assert memory(lora=LoraConfig(rank=4)).moments < usual.moments
    on_cpu = update_memory(config, "bfloat16", plain, replace(SHAPES, on_gpu=False))
    assert on_cpu.working > usual.working, "attention weights are kept there"


@pytest.mark.parametrize("frozen_weights", ["full", "int8"])
@pytest.mark.slow
def test_with_adapters_student_and_teacher_are_one_copy(frozen_weights):
    """On SD3.5-medium's geometry, without its memory."""
    config = medium_geometry()
    distill = DistillConfig(lora={"rank": 64}, frozen_weights=frozen_weights)
    transformer, _ = on_meta(config, torch.bfloat16, distill.lora)
    net = SD3Backbone(transformer)
    if frozen_weights == "int8":
        quantize_blocks(net, "int8")
    held = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    heads = head_parameters(config, distill.discriminator)
    assert update_memory(config, "bfloat16", distill, SHAPES).weights == held + 4 * heads
    adapters = adapter_parameters(config, 64, distill.lora.targets)
    one_copy = 2 * (parameters(config) + 384**2 * 1536)
    assert held == one_copy + 4 * adapters if frozen_weights == "full" else held < 0.7 * one_copy


def medium_geometry() -> dict[str, Any]:
    return geometry(
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        out_channels=16,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )


def test_low_bits_save_memory_and_say_so():
    plain = DistillConfig(global_batch=8)

    def memory(**changes: Any):
        config = plain.model_copy(update=changes)
        return update_memory(medium_geometry(), "bfloat16", config, SHAPES)

    usual = memory()
    assert memory(optimizer_bits=8).moments < 0.3 * usual.moments
    saved = usual.weights - memory(frozen_weights="float8").weights
    assert saved == pytest.approx(parameters(medium_geometry()), rel=0.05)


def training_memory(config) -> int | None:
    costs = model_costs(config.teacher)
    return None if costs is None else costs.training_bytes(config)


def distill_line(config) -> str:
    plan = make_plan(config, ArtifactStore("memory://plans"), Selection())
    return next(stage.estimate for stage in plan if stage.name == "distill")


def test_plan_says_how_much_memory_a_worker_needs(tiny_sd3, tmp_path):
    assert distill_line(open_config(preset="shapes", environment={})).endswith(" GB a worker")
    config = make_tiny_config(tiny_sd3, tmp_path)
    assert distill_line(config).endswith(", about 0.0 GB a worker")
    broken = tmp_path / "model"
    shutil.copytree(tiny_sd3, broken)
    (broken / "transformer" / "config.json").write_text("{}")
    without = make_tiny_config(broken, tmp_path)
    assert training_memory(without) is None
    assert " GB" not in distill_line(without)


def test_plan_knows_the_teacher_in_the_hubs_cache(tiny_sd3, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = make_tiny_config(
        Path("someone/model"), tmp_path / "store", distill={"discriminator": {"channels": 4096}}
    )
    assert training_memory(config) is None
    snapshot = tmp_path / "models--someone--model" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_sd3, snapshot)
    (tmp_path / "models--someone--model" / "refs").mkdir()
    (tmp_path / "models--someone--model" / "refs" / "main").write_text("0" * 40)
    assert training_memory(config) > 0
    other = config.teacher.model_copy(update={"family": "other"})
    assert training_memory(config.model_copy(update={"teacher": other})) is None


def test_longer_text_and_larger_buckets_count(tiny_sd35_t5, tmp_path):
    def size(**sections: Any) -> int:
        config = make_tiny_config(
            tiny_sd35_t5, tmp_path, distill={"global_batch": 4096}, **sections
        )
        return training_memory(config)

    usual = size()
    assert size(prompts={"buckets": {"64x32": 1, "32x32": 1}}) > 1.5 * usual
    assert size(teacher={"use_t5": True, "max_sequence_length": 200}) > 1.5 * usual


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low", "checkpointed"])
def test_an_update_of_the_tuning_takes_the_memory_that_is_foretold(benchmark, name):
    """Within 15 %, as for `distill`."""
    allocated_peak = importlib.import_module("peak_memory").allocated_peak
    case = {
        "low": benchmark.Tuning(
            benchmark.geometry(4, 2, dual_attention_layers=(0, 1)),
            {"global_batch": 3, "lora": {"rank": 8}},
            rows=12,
            columns=16,
            text=20,
        ),
        "checkpointed": benchmark.Tuning(
            benchmark.geometry(5, 3),
            {
                "global_batch": 8,
                "micro_batch": 4,
                "precision": "float32",
                "checkpoint_blocks": True,
                "lora": {"rank": 16},
            },
            rows=10,
            columns=16,
            text=30,
            null_tokens=0,
        ),
    }[name]
    gc.collect()
    found, expected = allocated_peak(case.train), case.estimate()
    assert expected.total == pytest.approx(found, rel=0.15)
    lasting = expected.total - expected.working
    assert expected.working == pytest.approx(found - lasting, rel=0.2)
