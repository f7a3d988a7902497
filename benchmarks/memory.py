"""Compares the memory that `plan` predicts for an update with what updates actually use.

    python benchmarks/memory.py
    python benchmarks/memory.py --large

Each configuration is built and makes two updates (the second has the optimizer's moments), in
separate processes: one measures what the system sees (resident set, or the GPU's peak), the other
uses torch's profiler, which sees every CPU tensor. Prints the ratio of the estimate to each, and
the same for the weights alone. `--large` measures SD3.5-medium's geometry with random weights, in
up to 8 GB. 8-bit moments need `ladd-pipeline[low-bit]`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from peak_memory import allocated_peak, in_own_process, resident_peak

from schemas.config import DistillConfig, DpoConfig
from stages.ladd.backbone import Backbone, Conditioning, WithoutAdapters
from stages.ladd.dpo_trainer import DpoTrainer
from stages.ladd.low_bit import quantize_blocks
from stages.ladd.precision import computed_dtype, cpu_has_bfloat16
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_layers import parameters
from stages.teachers.sd3_lora import add_adapters
from stages.teachers.sd3_memory import Memory, Shapes, tuning_update_memory, update_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """A transformer, how it is trained, and on what."""

    transformer: dict[str, Any]
    training: dict[str, Any]
    rows: int = 16
    columns: int = 16
    text: int = 77
    null_tokens: int = 256
    teacher_dtype: str = "float32"

    @property
    def config(self) -> DistillConfig:
        return DistillConfig.model_validate({"steps": 10, **self.training})

    @property
    def shapes(self) -> Shapes:
        text = self.text + (self.null_tokens > 0)
        share = self.config.global_batch
        on_gpu = DEVICE.type == "cuda"
        has_bfloat16 = on_gpu or cpu_has_bfloat16()
        return Shapes(self.rows, self.columns, text, share, on_gpu, has_bfloat16)

    def estimate(self) -> Memory:
        return update_memory(self.transformer, self.teacher_dtype, self.config, self.shapes)

    def build(self) -> LaddTrainer:
        torch.manual_seed(0)
        width = self.transformer["pooled_projection_dim"]
        return LaddTrainer(*self._nets(), width, self.config, DEVICE)

    def _nets(self) -> tuple[Backbone, Backbone]:
        """Student and frozen teacher, as the workers of `distill` build them."""
        config = self.config
        dtype = computed_dtype(getattr(torch, self.teacher_dtype), DEVICE)
        if config.lora is not None:
            student = self._backbone(dtype)
            adapters = add_adapters(student.transformer, config.lora)
            self._quantize(student)
            return student.to(DEVICE), WithoutAdapters(student, adapters.off)
        teacher = self._backbone(dtype).requires_grad_(False)
        self._quantize(teacher)
        return self._backbone(torch.float32).to(DEVICE), teacher.to(DEVICE)

    def _backbone(self, dtype: torch.dtype) -> SD3Backbone:
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # a large net is never there in float32
        net = SD3Transformer2DModel(**self.transformer).to(dtype)
        torch.set_default_dtype(usual)
        return SD3Backbone(net, checkpoint_blocks=self.config.checkpoint_blocks)

    def _quantize(self, net: SD3Backbone) -> None:
        if self.config.frozen_weights != "full":
            quantize_blocks(net, self.config.frozen_weights)

    def resident_weights(self) -> int:
        """Bytes of the weights of student, teacher and heads, each storage counted once."""
        trainer = self.build()
        return held_by(trainer.student, trainer.teacher, trainer.heads)

    def latents(self, batch: int) -> torch.Tensor:
        """Random latents (B, C, H, W)."""
        patch = self.transformer["patch_size"]
        return torch.randn(
            batch, self.transformer["in_channels"], patch * self.rows, patch * self.columns
        )

    def text_of(self, batch: int) -> Conditioning:
        """Random conditioning."""
        tokens = torch.randn(batch, self.text, self.transformer["joint_attention_dim"])
        pooled = torch.randn(batch, self.transformer["pooled_projection_dim"])
        return Conditioning(tokens, pooled, self.null_tokens)

    def train(self) -> None:
        """Build everything and make two updates."""
        config, trainer = self.config, self.build()
        batch = config.global_batch + (config.objective.mismatched_share > 0)
        latents, text = self.latents(batch), self.text_of(batch)
        for _ in range(2):
            trainer.update(latents, text)


@dataclass(frozen=True)
class Tuning(Case):
    """Preference tuning of a transformer."""

    @property
    def config(self) -> DpoConfig:
        return DpoConfig.model_validate(self.training)

    def estimate(self) -> Memory:
        return tuning_update_memory(self.transformer, self.config, self.shapes)

    def build(self) -> DpoTrainer:
        torch.manual_seed(0)
        net = self._backbone(computed_dtype(getattr(torch, self.config.precision), DEVICE))
        adapters = add_adapters(net.transformer, self.config.lora)
        reference = WithoutAdapters(net.to(DEVICE), adapters.off)
        return DpoTrainer(net, reference, self.config, DEVICE)

    def resident_weights(self) -> int:
        return held_by(self.build().net)

    def train(self) -> None:
        trainer, pairs = self.build(), self.config.global_batch
        batch = self.latents(pairs), self.latents(pairs), self.text_of(pairs)
        for _ in range(2):
            trainer.update(*batch)


def held_by(*nets: torch.nn.Module) -> int:
    """Bytes of the nets' parameters and buffers, each storage counted once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for net in nets
        for tensor in (*net.parameters(), *net.buffers())
    }
    return sum(storages.values())


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
        {"global_batch": 6, "lora": {"rank": 32}},
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
    "adapters, int8": Case(
        geometry(8, 6, qk_norm=None),
        {"global_batch": 6, "lora": {"rank": 32}, "frozen_weights": "int8"},
        rows=12,
        columns=20,
        teacher_dtype="bfloat16",
    ),
    "full weights, int8 teacher": Case(
        geometry(8, 6), {"global_batch": 4, "frozen_weights": "int8"}, teacher_dtype="bfloat16"
    ),
    "full weights, 8-bit moments": Case(
        geometry(8, 6), {"global_batch": 4, "optimizer_bits": 8}, teacher_dtype="bfloat16"
    ),
    "preference tuning": Tuning(
        geometry(8, 6, dual_attention_layers=(0, 1)),
        {"global_batch": 3, "lora": {"rank": 64}},
        rows=16,
        columns=20,
    ),
    "preference tuning, float32, checkpointed": Tuning(
        geometry(8, 6),
        {
            "global_batch": 8,
            "micro_batch": 4,
            "precision": "float32",
            "checkpoint_blocks": True,
            "lora": {"rank": 32},
        },
        rows=20,
        columns=12,
    ),
}


def medium(blocks: int, **distill: Any) -> Case:
    """The first blocks of SD3.5-medium; the published model has 24, of which 13 are dual."""
    transformer = geometry(
        blocks,
        24,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(min(blocks, 13))),
    )
    options = {"global_batch": 1, "checkpoint_blocks": True, **distill}
    return Case(transformer, options, rows=8, columns=8, text=16, teacher_dtype="bfloat16")


LARGE_CASES = {
    "SD3.5-medium, adapters": medium(24, lora={"rank": 64}),
    "SD3.5-medium, adapters, int8": medium(24, lora={"rank": 64}, frozen_weights="int8"),
    "SD3.5-medium's first 2 blocks, full weights, int8 teacher": medium(2, frozen_weights="int8"),
    "SD3.5-medium's first 2 blocks, full weights, 8-bit moments": medium(2, optimizer_bits=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = CASES | LARGE_CASES
    parser.add_argument("--case", choices=cases, help="measure only this case")
    parser.add_argument("--large", action="store_true", help="measure those of SD3.5-medium")
    parser.add_argument(
        "--measure", choices=["weights", "resident", "allocated"], help="only in this way"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measured(cases[args.case], args.measure)))
        return
    ways = ["weights", "resident", *(["allocated"] if DEVICE.type == "cpu" else [])]
    for name in [args.case] if args.case else LARGE_CASES if args.large else CASES:
        expected = cases[name].estimate()
        size = parameters(cases[name].transformer) / 1e6
        print(
            f"{name}, {size:.0f} M parameters: {expected.total / 1e6:.0f} MB predicted, "
            f"{expected.weights / 1e6:.0f} of them weights",
            flush=True,
        )
        for way in [args.measure] if args.measure else ways:
            found = in_own_process("--case", name, "--measure", way, "--here")
            ratio = (expected.weights if way == "weights" else expected.total) / found
            print(f"    {way:9} {found / 1e6:6.0f} MB, ratio {ratio:.2f}", flush=True)


def measured(case: Case, way: str) -> int:
    if way == "weights":
        return case.resident_weights()
    return {"resident": resident_peak, "allocated": allocated_peak}[way](case.train)


if __name__ == "__main__":
    main()
