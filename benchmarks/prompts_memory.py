"""Measures the memory that the stage `prompts` uses as the number of prompts grows.

    python benchmarks/prompts_memory.py --counts 100000 1000000

For each count, a separate process runs the whole stage, including the search for near duplicates,
on a text file of that many different prompts. Prints the peak of the process's anonymous memory
(pages of the spool's files are not counted, since the system may drop them at any time), what each
prompt beyond the first count adds, and prompts per second.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from peak_memory import anonymous_peak, in_own_process

from pipeline.base.stage import StageContext
from pipeline.base.store import ArtifactStore
from pipeline.config import load_config
from stages import prompts

WORDS = ["harbour", "lantern", "velvet", "copper", "silent", "bicycle", "garden", "river", "tower"]
MIB = 2**20


def silent(*_: object) -> None:
    """Report to nobody."""


def write_prompts(path: Path, count: int) -> None:
    """Write `count` different lines of ten words and a number."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            file.write(f"{' '.join(rng.choices(WORDS, k=10))} number {number}\n")


def measure(count: int) -> dict[str, float]:
    """Measure peak bytes, seconds and kept prompts of the stage over `count` prompts."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prompts.txt"
        write_prompts(source, count)
        settings = [
            f"prompts.sources=[{{kind: file, url: {source}}}]",
            "prompts.count=null",
            "prompts.max_tokens=1000",
            "prompts.near_duplicates=0.9",
        ]
        config = load_config(preset="shapes", settings=settings)
        store = ArtifactStore(f"{folder}/store")
        context = StageContext("prompts", "k", "", config, store, {}, silent, silent, silent)
        kept = []
        started = time.perf_counter()
        peak = anonymous_peak(lambda: kept.append(prompts.run(context).counts["kept"]))
        return {"peak": peak, "seconds": time.perf_counter() - started, "kept": kept[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one is not None:
        print(json.dumps(measure(wanted.one)))
        return
    first = None
    for count in wanted.counts:
        measured = in_own_process("--one", str(count))
        first = first or (count, measured["peak"])
        grown = (measured["peak"] - first[1]) / (count - first[0]) if count > first[0] else None
        print(
            f"{count:,} prompts, {measured['kept']:,} kept: peak {measured['peak'] / MIB:,.0f} MiB"
            + (f", {grown:.0f} bytes per additional prompt" if grown is not None else "")
            + f", {count / measured['seconds']:,.0f} prompts per second",
            flush=True,
        )


if __name__ == "__main__":
    main()
