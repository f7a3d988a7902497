"""Compares one LADD update with FastGen's alternating schedule and with the machine's matrix rate.

    python benchmarks/distill_step.py

Both schedules run the same networks and batch and make one update of the student and one of the
heads. With F one forward of the transformer for one sample, ours costs 6F (`stages/ladd/update.py`)
and the alternating schedule 8F: its discriminator iteration runs the student again. The matrix rate
is the best that one `torch.matmul` reaches in the same run and dtype. Torch counts the FLOPs of a
step from the operations that actually ran. Peak memory covers networks, optimizers and two steps,
as seen by the operating system, with each schedule in a separate process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from diffusers import SD3Transformer2DModel
from peak_memory import in_own_process, resident_peak
from torch.utils.flop_counter import FlopCounterMode

from schemas.config import DistillConfig, RenoiseConfig, StudentTimeConfig
from stages.ladd.backbone import Conditioning
from stages.ladd.flow import add_noise, clean_estimate, draw
from stages.ladd.heads import DiscriminatorHeads
from stages.ladd.losses import fake_loss, real_loss, student_loss
from stages.ladd.parallelize import compile_blocks
from stages.ladd.update import MicroBatch, Nets, accumulate_gradients
from stages.teachers.sd3_backbone import SD3Backbone


class Step:
    """What both schedules share: student, teacher, heads, optimizers and a batch."""

    def __init__(self, batch: int, side: int, text: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.student = SD3Backbone(build_transformer(side))
        self.teacher = SD3Backbone(build_transformer(side)).requires_grad_(False).eval()
        width = self.student.transformer.inner_dim
        config = DistillConfig()
        self.heads = DiscriminatorHeads(self.teacher.tap_widths, width, config.discriminator)
        self.optimizers = [
            torch.optim.AdamW(net.parameters(), lr=1e-6, betas=config.betas, fused=True)
            for net in (self.student, self.heads)
        ]
        self.x0 = torch.randn(batch, 16, side, side)
        self.conditioning = Conditioning(torch.randn(batch, text, width), torch.randn(batch, width))
        shape = self.x0.shape[1:]
        self.draws = [
            draw(0, i, range(batch), shape, StudentTimeConfig(), RenoiseConfig(), student_step=999)
            for i in range(2)
        ]
        self.autocast = lambda: torch.autocast(
            "cpu", torch.bfloat16, enabled=dtype == torch.bfloat16
        )

    def ours(self) -> None:
        nets = Nets(self.student, self.teacher, self.heads, self.autocast)
        accumulate_gradients(nets, MicroBatch(self.x0, self.conditioning, self.draws[0]))
        self._learn(0)
        self._learn(1)

    def alternating(self) -> None:
        """FastGen's schedule: an iteration for the student, then one for the heads."""
        x0, conditioning = self.x0, self.conditioning
        self.heads.requires_grad_(False)
        with self.autocast():
            fake = self._generate(self.draws[0])
            sigma, noise = self.draws[0].renoise_sigma_B, self.draws[0].renoise_noise_BCHW
            features = self.teacher.features(add_noise(fake, noise, sigma), sigma, conditioning)
            loss = student_loss(self.heads(features, sigma, conditioning.pooled_BP))
        loss.backward()
        self._learn(0)
        self.heads.requires_grad_(True)
        sigma, noise = self.draws[1].renoise_sigma_B, self.draws[1].renoise_noise_BCHW
        with torch.no_grad(), self.autocast():
            fake = self._generate(self.draws[1])
            sides = [
                self.teacher.features(add_noise(x, noise, sigma), sigma, conditioning)
                for x in (x0, fake)
            ]
        with self.autocast():
            real, made = (self.heads(side, sigma, conditioning.pooled_BP) for side in sides)
        (real_loss(real) + fake_loss(made)).backward()
        self._learn(1)

    def _generate(self, draws) -> torch.Tensor:
        x_t = add_noise(self.x0, draws.student_noise_BCHW, draws.student_sigma_B)
        velocity = self.student.velocity(x_t, draws.student_sigma_B, self.conditioning).float()
        return clean_estimate(x_t, velocity, draws.student_sigma_B)

    def _learn(self, which: int) -> None:
        self.optimizers[which].step()
        self.optimizers[which].zero_grad(set_to_none=True)


def build_transformer(side: int) -> SD3Transformer2DModel:
    """Build a transformer of 40 M parameters: 8 blocks, 384 wide."""
    return SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=8,
        attention_head_dim=64,
        num_attention_heads=6,
        joint_attention_dim=384,
        caption_projection_dim=384,
        pooled_projection_dim=384,
        pos_embed_max_size=side,
        qk_norm="rms_norm",
    )


def matrix_rate(dtype: torch.dtype, side: int = 2048, rounds: int = 6) -> float:
    """Measure the best FLOP/s of a square matrix product."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / min(seconds(lambda: a @ b) for _ in range(rounds))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=32, help="latent height and width")
    parser.add_argument("--text", type=int, default=77, help="text tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also measure compiled blocks")
    parser.add_argument("--measure", choices=["ours", "alternating"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    def build() -> Step:
        return Step(args.batch, args.side, args.text, dtype)

    if args.measure:
        print(json.dumps(resident_peak(lambda: two_steps(build(), args.measure))))
        return
    peaks = {
        name: in_own_process(*sys.argv[1:], "--measure", name) for name in ("ours", "alternating")
    }
    step = build()
    size = sum(p.numel() for p in step.student.parameters()) / 1e6
    with FlopCounterMode(display=False) as counter:
        step.ours()
    flops = counter.get_total_flops()
    step.alternating()
    # Alternate the two, so that a noisy neighbour slows both; measure the matrix rate before and
    # after them.
    rate = matrix_rate(dtype)
    pairs = [(seconds(step.ours), seconds(step.alternating)) for _ in range(args.rounds)]
    rate = max(rate, matrix_rate(dtype))
    ours, alternating = (min(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"transformer of {size:.0f} M parameters, batch {args.batch}, {args.dtype}")
    print(f"ours         {args.batch / ours:7.2f} samples/s")
    print(f"alternating  {args.batch / alternating:7.2f} samples/s")
    print(f"ratio        {ratio:7.2f}  (median of {args.rounds} pairs)")
    print(
        f"step {flops / ours / 1e9:.0f} GFLOP/s of {rate / 1e9:.0f} GFLOP/s matrix rate: "
        f"{flops / ours / rate:.2f}"
    )
    if args.compile:
        compiled = build()
        for net in (compiled.student, compiled.teacher):
            compile_blocks(net)
        first = seconds(compiled.ours)
        turns = [(seconds(step.ours), seconds(compiled.ours)) for _ in range(args.rounds)]
        gain = statistics.median(plain / fast for plain, fast in turns)
        print(f"compiled blocks: {gain:.2f} times as fast; the first step takes {first:.0f} s")
    print("peak memory  " + ", ".join(f"{n} {peak / 2**30:.2f} GiB" for n, peak in peaks.items()))


def two_steps(step: Step, schedule: str) -> None:
    """Run two steps; the second starts with the optimizers' moments allocated."""
    for _ in range(2):
        getattr(step, schedule)()


if __name__ == "__main__":
    main()
