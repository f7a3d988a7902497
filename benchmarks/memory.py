"""Compares the memory that `plan` predicts for an update with what updates actually use.

    python benchmarks/memory.py

Each configuration is built and makes two updates (the second has the optimizer's moments), in
separate processes: one measures what the system sees (resident set, or the GPU's peak), the other
uses torch's profiler, which sees every CPU tensor. Prints the ratio of the estimate to each.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peak_memory import allocated_peak, in_own_process, resident_peak

from schemas.config import DistillConfig, LoraConfig
from stages.ladd.backbone import Conditioning
from stages.ladd.precision import computed_dtype, cpu_has_bfloat16
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import add_adapters
from stages.teachers.sd3_memory import Memory, Shapes, parameters, update_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """A transformer, how it is trained, and on what."""

    transformer: dict[str, Any]
    distill: dict[str, Any]
    rows: int = 16
    columns: int = 16
    text: int = 77
    null_tokens: int = 256
    teacher_dtype: str = "float32"

    @property
    def config(self) -> DistillConfig:
        return DistillConfig.model_validate({"steps": 10, **self.distill})

    @property
    def shapes(self) -> Shapes:
        text = self.text + (self.null_tokens > 0)
        share = self.config.global_batch
        on_gpu = DEVICE.type == "cuda"
        has_bfloat16 = on_gpu or cpu_has_bfloat16()
        return Shapes(self.rows, self.columns, text, share, on_gpu, has_bfloat16)

    def estimate(self) -> Memory:
        return update_memory(self.transformer, self.teacher_dtype, self.config, self.shapes)

    def train(self) -> None:
        """Build everything and make two updates."""
        torch.manual_seed(0)
        config = self.config
        dtype = computed_dtype(getattr(torch, self.teacher_dtype), DEVICE)
        student, teacher = (SD3Transformer2DModel(**self.transformer) for _ in range(2))
        teacher.to(dtype)
        if config.lora is not None:
            add_adapters(student, config.lora)
        nets = (
            SD3Backbone(net, checkpoint_blocks=config.checkpoint_blocks).to(DEVICE)
            for net in (student, teacher)
        )
        width = self.transformer["pooled_projection_dim"]
        trainer = LaddTrainer(*nets, width, config, DEVICE)
        batch = config.global_batch + (config.objective.mismatched_share > 0)
        patch = self.transformer["patch_size"]
        latents = torch.randn(
            batch, self.transformer["in_channels"], patch * self.rows, patch * self.columns
        )
        tokens = torch.randn(batch, self.text, self.transformer["joint_attention_dim"])
        text = Conditioning(tokens, torch.randn(batch, width), self.null_tokens)
        for _ in range(2):
            trainer.update(latents, text)


def geometry(layers: int, heads: int, head_width: int = 64, **more: Any) -> dict[str, Any]:
    """Return a transformer's configuration, as diffusers reads and saves it."""
    width = heads * head_width
    return {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "attention_head_dim": head_width,
        "num_attention_heads": heads,
        "joint_attention_dim": width,
        "caption_projection_dim": width,
        "pooled_projection_dim": width,
        "pos_embed_max_size": 48,
        "qk_norm": "rms_norm",
        **more,
    }


CASES = {
    "full weights, float32": Case(
        geometry(8, 6), {"precision": "float32", "global_batch": 4, "seed": 1}
    ),
    "full weights, bfloat16, checkpointed": Case(
        geometry(6, 7),
        {"global_batch": 12, "checkpoint_blocks": True},
        rows=24,
        columns=12,
        teacher_dtype="bfloat16",
    ),
    "adapters, bfloat16": Case(
        geometry(8, 6, qk_norm=None),
        {"global_batch": 6, "lora": LoraConfig(rank=32).model_dump()},
        rows=12,
        columns=20,
        teacher_dtype="bfloat16",
    ),
    "dual attention, bfloat16, accumulated": Case(
        geometry(6, 6, dual_attention_layers=(0, 1, 2)),
        {"global_batch": 8, "micro_batch": 4, "discriminator": {"channels": 128}},
        rows=16,
        columns=24,
        text=154,
        null_tokens=0,
        teacher_dtype="bfloat16",
    ),
    "a float32 teacher under bfloat16": Case(
        geometry(6, 6), {"global_batch": 4}, rows=20, columns=12
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="measure only this case")
    parser.add_argument("--measure", choices=["resident", "allocated"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        peak = {"resident": resident_peak, "allocated": allocated_peak}[args.measure]
        print(json.dumps(peak(CASES[args.case].train)))
        return
    ways = ["resident"] if DEVICE.type == "cuda" else ["resident", "allocated"]
    for name in [args.case] if args.case else CASES:
        expected = CASES[name].estimate()
        size = parameters(CASES[name].transformer) / 1e6
        print(
            f"{name}, {size:.0f} M parameters: {expected.total / 1e6:.0f} MB predicted", flush=True
        )
        for way in ways:
            measured = in_own_process("--case", name, "--measure", way)
            ratio = expected.total / measured
            print(f"    {way:9} {measured / 1e6:6.0f} MB, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
