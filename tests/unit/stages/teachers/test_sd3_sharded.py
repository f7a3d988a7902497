"""Weights that no rank holds whole: built on the meta device, filled shard by shard, and the same
bits as when they are loaded whole.
"""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from schemas.config import LoraConfig, TeacherConfig
from schemas.errors import ConfigError
from stages.ladd.backbone import Conditioning
from stages.ladd.parallelize import spread
from stages.teachers import open_teacher
from stages.teachers.sd3_sharded import on_meta
from tests.support.training import on_ranks

CPU = torch.device("cpu")
GEOMETRIES = {
    "sd3-medium": (2_028_328_000, {"num_layers": 24, "heads": 24, "table": 192}),
    "sd35-medium": (
        2_243_171_520,
        {"num_layers": 24, "heads": 24, "table": 384, "qk_norm": "rms_norm", "dual": 13},
    ),
    "sd35-large": (
        8_056_627_520,
        {"num_layers": 38, "heads": 38, "table": 192, "qk_norm": "rms_norm"},
    ),
}
"""Parameters of the published models, and what their `transformer/config.json` says."""
WAYS: dict[str, dict[str, Any]] = {
    "student of a bfloat16 file": {"file": "bfloat16", "backbone": {"dtype": torch.float32}},
    "student of a float16 file": {"file": "float16", "backbone": {"dtype": torch.float32}},
    "teacher": {"file": "bfloat16", "backbone": {}},
    "adapters": {
        "file": "bfloat16",
        "backbone": {"dtype": torch.float32, "lora": LoraConfig(rank=4)},
    },
}


def geometry(num_layers: int, heads: int, table: int, **more: Any) -> dict[str, Any]:
    return {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": num_layers,
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "caption_projection_dim": 64 * heads,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": table,
        "qk_norm": more.get("qk_norm"),
        "dual_attention_layers": list(range(more.get("dual", 0))),
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_published_geometries_are_built_without_their_memory(name):
    expected, config = GEOMETRIES[name]
    before = resident_bytes()
    transformer, _ = on_meta(geometry(**config), torch.bfloat16)
    assert sum(p.numel() for p in transformer.parameters()) == expected
    assert resident_bytes() - before < 100e6
    assert all(p.dtype == torch.bfloat16 for p in transformer.parameters())


def test_adapters_of_a_large_transformer_alone_take_memory():
    config = geometry(**GEOMETRIES["sd35-large"][1])
    before = resident_bytes()
    transformer, adapters = on_meta(config, torch.float32, LoraConfig(rank=4))
    size = sum(tensor.numel() for tensor in adapters.values())
    assert size == sum(p.numel() for p in transformer.parameters() if p.requires_grad) > 10e6
    assert all(p.is_meta for p in transformer.parameters())
    assert resident_bytes() - before < 4 * size + 200e6


@pytest.fixture(scope="module")
def folders(tiny_sd3, tmp_path_factory) -> dict[str, str]:
    """The tiny pipeline with its transformer in low precision, cut into several files."""
    made = {}
    for dtype in ("bfloat16", "float16"):
        folder = tmp_path_factory.mktemp(dtype) / "model"
        shutil.copytree(tiny_sd3, folder)
        shutil.rmtree(folder / "transformer")
        net = SD3Transformer2DModel.from_pretrained(tiny_sd3 / "transformer")
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        net.to(getattr(torch, dtype)).save_pretrained(folder / "transformer", max_shard_size="20KB")
        # As hub folders often have it: the same weights once more, in another variant.
        stray = folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors"
        stray.write_bytes(b"not what is loaded")
        assert len(list((folder / "transformer").glob("*-of-*.safetensors"))) > 2
        made[dtype] = str(folder)
    return made


def compare(rank: int, way: dict[str, Any], folder: str) -> dict[str, Any]:
    teacher = open_teacher(TeacherConfig(model=folder, dtype="bfloat16", use_t5=False))
    options = way["backbone"]
    whole = teacher.backbone(**options)
    seen = {}

    def shard(net: nn.Module) -> None:
        seen["meta"] = all(t.is_meta for t in (*net.parameters(), *net.buffers()))
        spread(net, CPU, 2, options.get("dtype", torch.bfloat16))

    loaded = SD3Transformer2DModel.from_pretrained
    SD3Transformer2DModel.from_pretrained = None  # the sharded way must not call it
    try:
        sharded = teacher.backbone(**options, shard=shard)
    finally:
        SD3Transformer2DModel.from_pretrained = loaded
    expected, found = whole.state_dict(), sharded.state_dict()
    shards = [t for t in found.values() if isinstance(t, DTensor)]
    held = sum(t.to_local().numel() for t in shards)
    full = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}
    generator = torch.Generator().manual_seed(3)
    batch = (torch.randn(2, 4, 8, 12, generator=generator), torch.tensor([0.3, 0.9]))
    text = Conditioning(torch.randn(2, 5, 24, generator=generator), torch.randn(2, 24), 7)
    text.pooled_BP.fill_(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        velocities = [net.velocity(*batch, text).float() for net in (whole, sharded)]
    return {
        "built on meta": seen["meta"],
        "names": list(full) == list(expected),
        "dtypes": all(full[n].dtype == expected[n].dtype for n in expected),
        "bits": all(torch.equal(full[n], expected[n]) for n in expected),
        "trained": [n for n, p in sharded.named_parameters() if p.requires_grad]
        == [n for n, p in whole.named_parameters() if p.requires_grad],
        "half": held < 0.6 * sum(p.numel() for p in whole.parameters()),
        "table": bool(torch.equal(full[TABLE], expected[TABLE]))
        and TABLE in dict(sharded.named_buffers()),
        "velocity": bool(torch.allclose(*velocities, atol=0.05, rtol=0.05)),
    }


TABLE = "transformer.pos_embed.pos_embed"


def _rank(rank: int, folders: dict[str, str], out: str) -> None:
    found = {name: compare(rank, way, folders[way["file"]]) for name, way in WAYS.items()}
    Path(f"{out}-{rank}").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def on_two(folders, tmp_path_factory) -> list[dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("ranks") / "found"
    on_ranks(2, _rank, folders, str(out))
    return [json.loads(Path(f"{out}-{rank}").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_each_rank_loads_its_shards_alone_and_bit_for_bit(name, on_two):
    for found in on_two:
        assert dict.fromkeys(found[name], True) == found[name]


def test_a_folder_that_lacks_a_weight_is_named(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["bfloat16"], folder)
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = index.parent / content["weight_map"].pop("pos_embed.proj.bias")
    index.write_text(json.dumps(content))
    kept = {n: t for n, t in load_file(shard).items() if n != "pos_embed.proj.bias"}
    save_file(kept, shard)
    teacher = open_teacher(TeacherConfig(model=str(folder), use_t5=False))
    with pytest.raises(ConfigError, match=r"teacher\.model: .*transformer cannot be loaded"):
        teacher.backbone(shard=partial(spread, device=CPU, shard_over=1, dtype=torch.float32))
