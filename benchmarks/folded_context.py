"""Times the embedded teacher's forward pass with SD3's 256 empty T5 rows folded into one or not.

    python benchmarks/folded_context.py

Prints the ratio of samples per second and the largest difference between the outputs.
"""

from __future__ import annotations

import time

import torch

from schemas.config import TeacherConfig
from stages.ladd.backbone import Conditioning
from stages.teachers import open_teacher


def main(batch: int = 32, rounds: int = 5) -> None:
    teacher = open_teacher(TeacherConfig(family="shapes", dtype="float32", use_t5=False))
    backbone = teacher.backbone()
    folded = teacher.encode_prompts(["a red circle above a blue ring"] * batch)
    rows = torch.zeros(batch, folded.null_tokens, folded.tokens_BLD.shape[2])
    whole = Conditioning(torch.cat([folded.tokens_BLD, rows], dim=1), folded.pooled_BP)
    latents, sigma = torch.randn(batch, 16, 16, 16), torch.full((batch,), 0.6)

    def best(conditioning: Conditioning) -> tuple[float, torch.Tensor]:
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            with torch.no_grad():
                out = backbone.velocity(latents, sigma, conditioning)
            seconds.append(time.perf_counter() - start)
        return min(seconds), out

    (slow, expected), (fast, actual) = best(whole), best(folded)
    print(f"folded against 256 rows: {slow / fast:.2f} times as many samples per second")
    print(f"largest difference between the velocities: {(expected - actual).abs().max():.1e}")


if __name__ == "__main__":
    main()
