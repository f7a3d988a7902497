"""What LADD's choices are worth on the embedded teacher: each is taken away in turn.

    python benchmarks/ablations.py --store S --out docs/ablations.json --plot docs/ablations.svg

Trains one student per line below from the same prompts, with the preset's settings but for the one
that is named, and judges all of them on the same held-out prompts. The first line is trained with
several seeds: a difference smaller than their spread says nothing. Students that the store holds
are not trained again. Each takes as long as the preset's `distill`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.config import load_config
from pipeline.executor import make
from pipeline.observe import Observer
from pipeline.planning import Selection
from pipeline.shards import write_tar
from pipeline.store import Artifact, ArtifactStore
from pipeline.sweep import Trial, run_trials
from schemas.errors import LaddError
from stages.shapes_table import Judged, draw_real, score_table
from stages.synthesize import encode_image

SHIPPED = "as shipped"
ABLATIONS = {
    "heads behind the last block alone": "distill.discriminator.taps=last",
    "1D heads": "distill.discriminator.convolutions=1d",
    "unconditioned heads": "distill.discriminator.conditioned=false",
    "uniform noise levels": "distill.renoise.distribution=uniform",
    "with an L2 term": "distill.objective.regression_weight=1",
    "squares alone": "prompts.buckets={64x64: 1}",
}
REAL_SCENES = "real scenes as data"
SQUARE = "64x64"


def trials(store: str, seeds: int) -> dict[str, Trial]:
    """Each student's title, and how it is trained."""
    settings = {SHIPPED: ()} | {
        f"{SHIPPED}, seed {seed}": (f"distill.seed={seed}",) for seed in range(1, seeds)
    }
    settings |= {title: (setting,) for title, setting in ABLATIONS.items()}
    settings[REAL_SCENES] = (f"encode.external=[{store}/real-scenes/*.tar]",)
    return {title: Trial(own, _config(store, own)) for title, own in settings.items()}


def _config(store: str, settings: tuple[str, ...] = ()):
    return load_config(preset="shapes", settings=[f"store={store}", *settings])


def write_real_scenes(store: ArtifactStore, folder: Path, observer: Observer) -> None:
    """A scene of our own drawing for every sample of the preset, as shards that `encode` reads."""
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


def summary(title: str, judged: dict[str, Judged]) -> dict:
    """A student's line: attributes in percent and distances at 4, 2 and 1 steps, and attributes of
    the pictures that are not square at 4.
    """
    at = {n: judged[f"{title}, {n} step{'s'[: n > 1]}"] for n in (4, 2, 1)}
    wide = [v for bucket, v in at[4].attributes_by_bucket.items() if bucket != SQUARE]
    return {
        "student": title,
        "attributes": {n: round(100 * row.attributes, 1) for n, row in at.items()},
        "not square": round(100 * float(np.mean(wide)), 1),
        "distance": {n: round(row.frechet or 0.0, 3) for n, row in at.items()},
        "diversity": {n: round(row.diversity, 3) for n, row in at.items()},
    }


def spread(lines: list[dict]) -> dict:
    """Mean and standard deviation of students that differ in their seeds, as one line."""

    def words(what: str, digits: int) -> dict[int, str]:
        values = {n: [line[what][n] for line in lines] for n in (4, 2, 1)}
        return {
            n: f"{np.mean(v):.{digits}f} ± {np.std(v, ddof=1):.{digits}f}"
            for n, v in values.items()
        }

    return {"attributes": words("attributes", 1), "distance": words("distance", 2)}


def show(lines: list[dict]) -> None:
    """Print the table in Markdown."""
    print("| student | right at 4, 2, 1 steps, % | not square, 4 steps | distance at 4, 2, 1 |")
    print("|---|---|---|---|")
    for line in lines:
        right = " / ".join(f"{value:.1f}" for value in line["attributes"].values())
        far = " / ".join(f"{value:.2f}" for value in line["distance"].values())
        print(f"| {line['student']} | {right} | {line['not square']:.1f} | {far} |")


def draw(lines: list[dict], seeds: int, path: Path) -> None:
    """Bars a student: attributes and distance at four steps, the spread over seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    shipped, titles = lines[:seeds], [line["student"] for line in lines]
    panels = (
        ("all attributes right, 4 steps, %", lambda line: line["attributes"][4]),
        ("the same, pictures not square", lambda line: line["not square"]),
        ("Fréchet distance, 4 steps", lambda line: line["distance"][4]),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        values = [value(line) for line in lines]
        colours = ["#2f6f4f" if line in shipped else "#9aa5b1" for line in lines]
        bars = axis.barh(titles, values, color=colours)
        axis.bar_label(bars, [f"{v:g}" for v in values], padding=3, fontsize=8)
        spread = [value(line) for line in shipped]
        axis.axvspan(min(spread), max(spread), color="#2f6f4f", alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a folder; kept between runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    wanted = parser.parse_args()
    store = ArtifactStore(str(wanted.store.absolute()))
    with Observer("text") as observer:
        write_real_scenes(store, wanted.store / "real-scenes", observer)
        planned = trials(store.url, wanted.seeds)
        titles = {id(trial): title for title, trial in planned.items()}
        folders = {}
        for trial, made in run_trials("distill", list(planned.values()), store, observer, 1):
            if isinstance(made, LaddError):
                print(f"{titles[id(trial)]} failed: {made}", flush=True)
            else:
                folders[titles[id(trial)]] = Path(store.path(made.name("model")))
    ordered = {title: folders[title] for title in planned if title in folders}
    rows = score_table(_config(store.url), ordered, wanted.prompts, lambda text: print(text))
    judged = {row.pictures: row for row in rows}
    lines = [summary(title, judged) for title in ordered]
    show(lines)
    if wanted.seeds > 1:
        print(f"{SHIPPED}, over {wanted.seeds} seeds: {spread(lines[: wanted.seeds])}")
    if wanted.out is not None:
        wanted.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if wanted.plot is not None:
        draw(lines, wanted.seeds, wanted.plot)


if __name__ == "__main__":
    main()
