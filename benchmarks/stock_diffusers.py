"""Compares a student in stock diffusers with the same student in our sampler, on the same prompts.

    python benchmarks/stock_diffusers.py STUDENT_FOLDER --prompts 250

For stock diffusers, a process that imports nothing from this project samples the pictures with
`StableDiffusion3Pipeline` and the folder's scheduler. Prints the share of pictures with all
attributes right for both, and the Fréchet distance between the two sets of pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.config import load_config
from schemas.config import ScoreConfig
from stages.judging.shapes_table import CPU, held_out
from stages.ladd.sampling import student_sigmas
from stages.pictures.samplers import student_sampler
from stages.pictures.student import open_student
from stages.scores import open_features, open_score
from stages.scores.frechet import frechet_distance
from stages.teachers import open_teacher

BATCH = 25
STOCK = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline

folder, work, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
pipe = StableDiffusion3Pipeline.from_pretrained(
    folder, text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.float32
)
pipe.set_progress_bar_config(disable=True)
for name, batch in json.load(open(f"{work}/batches.json")).items():
    pictures = pipe(
        [row["prompt"] for row in batch],
        width=batch[0]["width"],
        height=batch[0]["height"],
        num_inference_steps=steps,
        guidance_scale=0,
        generator=torch.Generator().manual_seed(batch[0]["seed"]),
        output_type="np",
    ).images
    np.save(f"{work}/{name}.npy", (pictures * 255).round().astype(np.uint8))
assert not {"stages", "pipeline", "schemas"} & set(sys.modules)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("--prompts", type=int, default=250)
    parser.add_argument("--steps", type=int, default=4)
    wanted = parser.parse_args()
    config = load_config(preset="shapes")
    batches = [
        rows[start : start + BATCH]
        for rows in held_out(config, wanted.prompts).values()
        for start in range(0, len(rows), BATCH)
    ]
    with tempfile.TemporaryDirectory() as work:
        named = {str(i): batch for i, batch in enumerate(batches)}
        (Path(work) / "batches.json").write_text(json.dumps(named))
        arguments = [str(wanted.student.absolute()), work, str(wanted.steps)]
        subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, cwd=work)
        stock = [np.load(Path(work) / f"{name}.npy") for name in named]
    teacher = open_teacher(config.teacher)
    backbone, grid = open_student(wanted.student)
    sample = student_sampler(teacher, backbone, CPU, student_sigmas(grid, wanted.steps))
    ours = [teacher.decode_latents(sample(batch)) for batch in batches]
    score = open_score(ScoreConfig(name="attributes"), CPU)
    space = open_features(ScoreConfig(name="judge_features"), CPU)
    for title, sampled in (("stock diffusers", stock), ("ladd-pipeline", ours)):
        right = [
            score.judge(pictures, [row["prompt"] for row in batch])
            for pictures, batch in zip(sampled, batches, strict=True)
        ]
        print(f"{title}: all attributes right in {100 * np.concatenate(right).mean():.1f} %")
    features = [np.concatenate([space.features(p) for p in sampled]) for sampled in (stock, ours)]
    print(f"Fréchet distance between the two: {frechet_distance(*features):.3f}")


if __name__ == "__main__":
    main()
