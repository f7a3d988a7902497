"""Compares the stage `synthesize` with a bare loop of stock diffusers on the same prompts.

    python benchmarks/synthesize.py
    python benchmarks/synthesize.py --preset sd35-medium-512 --prompts FILE

The bare loop calls `StableDiffusion3Pipeline` with batches of prompts and lets go of the pictures.
Ours makes whole shards: pictures in files, latents, records and sidecars. Both take turns, a shard
each, in the dtype that the device computes in, with the preset's steps and batch size. Prints
pictures per second and their ratio, and the share of our time in which the device draws and
decodes, not waiting for files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import StableDiffusion3Pipeline

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.config import load_config
from pipeline.executor import make
from pipeline.observe import Observer
from pipeline.planning import Selection
from schemas.config import PipelineConfig
from stages.ladd.precision import computed_dtype
from stages.synthesize import Synthesizer
from stages.teachers import open_teacher_in

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StockLoop:
    """What anyone would write: batches of prompts through stock diffusers."""

    def __init__(self, config: PipelineConfig, folder: str, device: torch.device) -> None:
        self.config = config.synthesize
        without_t5 = {} if config.teacher.use_t5 else {"text_encoder_3": None, "tokenizer_3": None}
        self.pipe = StableDiffusion3Pipeline.from_pretrained(
            folder, torch_dtype=computed_dtype(DTYPES[config.teacher.dtype], device), **without_t5
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> None:
        starts = [*range(0, len(samples), self.config.micro_batch), len(samples)]
        for start, end in pairwise(starts):
            batch = samples[start:end]
            self.pipe(
                [sample["prompt"] for sample in batch],
                width=batch[0]["width"],
                height=batch[0]["height"],
                num_inference_steps=self.config.steps,
                guidance_scale=self.config.guidance_scale,
                generator=[torch.Generator().manual_seed(sample["seed"]) for sample in batch],
            )


class Timed:
    """A synthesizer that knows how long its device drew and decoded."""

    def __init__(self, maker: Synthesizer) -> None:
        self.maker, self.seconds, self._drawn = maker, 0.0, maker._drawn
        maker._drawn = self._timed  # type: ignore[method-assign]

    def _timed(self, batch: list[dict[str, Any]]) -> Any:
        begin = time.perf_counter()
        drawn = self._drawn(batch)
        self.seconds += time.perf_counter() - begin
        return drawn


def planned(config: PipelineConfig) -> Artifact:
    """Plan prompts and shards in the configuration's store."""
    store = ArtifactStore(config.store)
    return make(Selection(until="prompts"), "prompts", config, store, Observer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="shapes")
    parser.add_argument("--prompts", help="a prompt file, for presets that have none")
    parser.add_argument("--shards", type=int, default=6, help="how many each makes")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"store={folder}", *wanted.set]
        if wanted.prompts:
            settings.append(f"prompts.sources=[{{kind: file, url: {wanted.prompts}}}]")
        config = load_config(preset=wanted.preset, settings=settings, environment={})
        artifact = planned(config)
        device = open_teacher_in(config.synthesize.pool, config.teacher).device
        maker = Synthesizer(config, artifact, "artifacts/synthesize/benchmark")
        stock = StockLoop(config, str(maker.teacher.folder), device)
        print(json.dumps(compare(artifact, maker, stock, wanted.shards), indent=2))


def compare(
    artifact: Artifact, maker: Synthesizer, stock: StockLoop, shards: int
) -> dict[str, float]:
    """Let both make the same shards in turns, after one that does not count."""
    timed, seconds, count = Timed(maker), {"ours": [0.0], "stock": [0.0]}, 0
    names = artifact.manifest.details["shards"][: shards + 1]
    for number, name in enumerate(names):
        with artifact.checked(artifact.entry(f"{name}.parquet")) as path:
            samples = pq.read_table(path).to_pylist()
        turns = {"ours": lambda name=name: maker(name), "stock": lambda s=samples: stock(s)}
        for who in sorted(turns, reverse=bool(number % 2)):
            begin = time.perf_counter()
            turns[who]()
            seconds[who].append(time.perf_counter() - begin)
        if number:
            count += len(samples)
        else:
            seconds, timed.seconds = {"ours": [], "stock": []}, 0.0
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    return {
        "pictures": count,
        "ours_per_second": round(count / sum(seconds["ours"]), 3),
        "stock_per_second": round(count / sum(seconds["stock"]), 3),
        "ours_over_stock": round(sum(seconds["stock"]) / sum(seconds["ours"]), 3),
        "median_of_shards": round(median(ratios), 3),
        "device_draws": round(timed.seconds / sum(seconds["ours"]), 3),
    }


if __name__ == "__main__":
    main()
