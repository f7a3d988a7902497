"""Measures what each of LADD's choices is worth on the embedded teacher by removing one at a time.

    python benchmarks/ablations.py --store S --out docs/ablations.json --plot docs/ablations.svg

Trains one student per line of the table from the same prompts, with the preset's settings except
the one that the line names, and judges all students on the same held-out prompts. The first line is
trained with several seeds: a difference smaller than their spread means nothing. Students already
in the store are not trained again. Each training takes as long as the preset's `distill`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.shards import write_tar
from pipeline.base.store import Artifact, ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.executor import make
from pipeline.machine import usable_cpus
from pipeline.observe import Observer
from pipeline.planning import Selection
from pipeline.sweep import Trial, run_trials
from schemas.errors import LaddError
from stages.judging.shapes_table import (
    Judged,
    StudentLine,
    at_steps,
    draw_real,
    held_out,
    score_table,
    student_lines,
)
from stages.ladd.grid import steps_title
from stages.synthesize import encode_image

SHIPPED = "as shipped"
ABLATIONS = {
    "heads behind the last block alone": "distill.discriminator.taps=last",
    "1D heads": "distill.discriminator.convolutions=1d",
    "unconditioned heads": "distill.discriminator.conditioned=false",
    "heads on features that are not standardized": "distill.discriminator.standardized=false",
    "no mismatched prompts": "distill.objective.mismatched_share=0",
    "uniform noise levels": "distill.renoise.distribution=uniform",
    "with an L2 term": "distill.objective.regression_weight=1",
    "squares alone": "prompts.buckets={64x64: 1}",
}
REAL_SCENES = "real scenes as data"


def trials(store: str, seeds: int, at_once: int) -> dict[str, Trial]:
    """Return each student's title and how to train it on its share of the machine's CPUs."""
    cpus = f"distill.cpus_per_worker={max(1, usable_cpus() // at_once)}"
    bare = (cpus, "distill.sample_prompts=0")
    settings = {SHIPPED: ()} | {
        f"{SHIPPED}, seed {seed}": (f"distill.seed={seed}",) for seed in range(1, seeds)
    }
    settings |= {title: (setting,) for title, setting in ABLATIONS.items()}
    settings[REAL_SCENES] = (f"encode.external=[{store}/real-scenes/*.tar]",)
    return {title: Trial(own, _config(store, (*own, *bare))) for title, own in settings.items()}


def _config(store: str, settings: tuple[str, ...] = ()):
    return open_config(preset="shapes", settings=[f"store={store}", *settings])


def write_real_scenes(store: ArtifactStore, folder: Path, observer: Observer) -> None:
    """Draw a scene for every sample of the preset and write them as shards that `encode` reads."""
    config = _config(store.url)
    artifact = make(Selection(until="prompts"), "prompts", config, store, observer)
    folder.mkdir(exist_ok=True)
    for shard, rows in _shards(artifact):
        samples = [
            (
                row["key"],
                {"png": encode_image(picture, "png", 100), "txt": row["prompt"].encode()},
            )
            for row, picture in zip(rows, draw_real(rows), strict=True)
        ]
        write_tar(folder / f"{shard.replace('/', '-')}.tar", samples)


def _shards(prompts: Artifact) -> Iterator[tuple[str, list[dict]]]:
    for shard in prompts.manifest.details["shards"]:
        with prompts.checked(prompts.entry(f"{shard}.parquet")) as path:
            yield shard, pq.read_table(path).to_pylist()


def spread(lines: list[StudentLine]) -> dict[str, str]:
    """Format the mean and standard deviation of students that differ only in their seeds."""

    def words(of: Callable[[StudentLine], dict[int, float]], digits: int) -> str:
        values = [[of(line)[n] for line in lines] for n in of(lines[0])]
        return " / ".join(
            f"{np.mean(v):.{digits}f} ± {np.std(v, ddof=1):.{digits}f}" for v in values
        )

    return {
        "all attributes, %": words(lambda line: line.attributes, 1),
        "Fréchet distance": words(lambda line: line.frechet, 3),
        "diversity": words(lambda line: line.diversity, 2),
    }


def show_buckets(rows: list[Judged], shipped: list[str]) -> None:
    """Print the overall and per-bucket distances of the teacher, and their means over the students
    `shipped`, which differ only in their seeds.
    """
    samplers = {row.pictures: [row] for row in rows if row.pictures.startswith("teacher, ")}
    for row in rows:
        if row.pictures in [at_steps(title, row.steps) for title in shipped]:
            name = f"{at_steps('student', row.steps)}, mean of {len(shipped)} seeds"
            samplers.setdefault(name, []).append(row)
    buckets = list(rows[-1].frechet_by_bucket)
    print(f"| Fréchet distance | all | {' | '.join(buckets)} |")
    print("|---" * (len(buckets) + 2) + "|")
    for name, judged in samplers.items():
        columns = [[np.nan if row.frechet is None else row.frechet for row in judged]]
        columns += [[row.frechet_by_bucket[bucket] for row in judged] for bucket in buckets]
        print(f"| {name} | {' | '.join(f'{np.mean(column):.3f}' for column in columns)} |")


def show(lines: list[StudentLine]) -> None:
    """Print the table in Markdown."""
    steps = " / ".join(map(str, lines[0].attributes))
    print(f"| at {steps} steps | all attributes, % | the same, not square | Fréchet distance |")
    print("|---|---|---|---|")
    for line in lines:
        columns = ((line.attributes, 1), (line.not_square, 1), (line.frechet, 3))
        cells = [
            " / ".join(f"{value:.{digits}f}" for value in of.values()) for of, digits in columns
        ]
        print(f"| {line.student} | {' | '.join(cells)} |")


def draw(lines: list[StudentLine], shipped: list[str], path: Path) -> None:
    """Plot one row per student and one mark per number of steps, with the spread of the students
    `shipped` as bands.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    panels: tuple[tuple[str, Callable[[StudentLine], dict[int, float]]], ...] = (
        ("all attributes right, %", lambda line: line.attributes),
        ("the same, pictures not square", lambda line: line.not_square),
        ("Fréchet distance to the teacher", lambda line: line.frechet),
    )
    places = range(len(lines))
    for axis, (title, value) in zip(axes, panels, strict=True):
        marks = zip(("#2f6f4f", "#c98a2b", "#7a4b8c"), "osD", strict=True)
        for n, (colour, mark) in zip(value(lines[0]), marks, strict=True):
            own = [value(line)[n] for line in lines if line.student in shipped]
            if own:
                axis.axvspan(min(own), max(own), color=colour, alpha=0.15, linewidth=0)
            values = [value(line)[n] for line in lines]
            label = steps_title(n)
            axis.plot(values, places, mark, color=colour, label=label, linestyle="none")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, [line.student for line in lines])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a folder; kept between runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=1, help="trainings to run in parallel")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    wanted = parser.parse_args()
    store = ArtifactStore(str(wanted.store.absolute()))
    held_out(_config(store.url), wanted.prompts)  # raises before any training starts
    with Observer("text") as observer:
        write_real_scenes(store, wanted.store / "real-scenes", observer)
        planned = trials(store.url, wanted.seeds, wanted.at_once)
        titles = {id(trial): title for title, trial in planned.items()}
        folders = {}
        for trial, made in run_trials(
            "distill", list(planned.values()), store, observer, wanted.at_once
        ):
            if isinstance(made, LaddError):
                print(f"{titles[id(trial)]} failed: {made}", flush=True)
            else:
                folders[titles[id(trial)]] = Path(store.path(made.name("model")))
    ordered = {title: folders[title] for title in planned if title in folders}
    if not ordered:
        sys.exit("no student was trained")
    shipped = [title for title in ordered if title.startswith(SHIPPED)]
    rows = score_table(_config(store.url), ordered, wanted.prompts, lambda text: print(text))
    lines = student_lines(rows, list(ordered))
    show(lines)
    show_buckets(rows, shipped)
    if len(shipped) > 1:
        print(f"{SHIPPED}, mean and deviation over {len(shipped)} seeds:")
        for what, words in spread([line for line in lines if line.student in shipped]).items():
            print(f"- {what}: {words}")
    if wanted.out is not None:
        wanted.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if wanted.plot is not None:
        draw(lines, shipped, wanted.plot)
    if len(ordered) < len(planned):
        sys.exit(f"{len(planned) - len(ordered)} of {len(planned)} students failed")


if __name__ == "__main__":
    main()
