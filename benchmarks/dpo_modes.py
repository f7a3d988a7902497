"""Compares both modes of preference tuning on the embedded teacher, training on teacher or student.

    python benchmarks/dpo_modes.py --store FOLDER --prompts 500

In the first mode adapters are trained on the teacher and applied to the student, in the second they
are trained on the student itself. Prints one table: the scale that the sweep chose, and a
comparison of the tuned with the untuned student at four steps on held-out prompts: how often it
wins by the reward that made the pairs (ties count half), and by how much attribute accuracy
changes, both with 95 % bootstrap intervals over prompts. Artifacts already in the store are not
made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipeline.base.store import ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.executor import make
from pipeline.observe import Observer
from pipeline.planning import Selection
from schemas.config import EvalConfig, PipelineConfig, ScoreConfig
from stages.judging.shapes_table import BATCH, CPU, held_out
from stages.judging.summary import interval_of
from stages.ladd.sampling import student_sigmas
from stages.pictures.samplers import student_sampler
from stages.pictures.student import open_student
from stages.scores import open_score
from stages.teachers import open_teacher

MODES = {"teacher": "trained on the teacher", "student": "trained on the student"}


def scores_of(folder: Path, config: PipelineConfig, count: int) -> dict[str, np.ndarray]:
    """Measure reward and accuracy of the student in a folder on each held-out prompt."""
    teacher = open_teacher(config.teacher)
    backbone, grid = open_student(folder)
    sample = student_sampler(teacher, backbone, CPU, student_sigmas(grid, 4))
    values: dict[str, list[float]] = {"layout": [], "attributes": []}
    judges = {name: open_score(ScoreConfig(name=name), CPU) for name in values}
    for rows in held_out(config, count).values():
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            pictures = teacher.decode_latents(sample(part))
            for name, judge in judges.items():
                values[name] += judge.judge(pictures, [row["prompt"] for row in part]).tolist()
    return {name: np.array(column) for name, column in values.items()}


def percent(values: np.ndarray) -> str:
    """Format the mean and its 95 % interval, in percent."""
    interval = interval_of(values, EvalConfig())
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a folder; kept between runs")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--set", action="append", default=[], help="a setting for both modes")
    wanted = parser.parse_args()
    store = ArtifactStore(str(wanted.store.absolute()))
    lines, base = [], None
    for mode, title in MODES.items():
        settings = [f"store={store.url}", *wanted.set, f"pairs.model={mode}"]
        config = open_config(preset="shapes", settings=settings)
        with Observer("text") as observer:
            made = make(Selection(until="dpo"), "dpo", config, store, observer)
        if base is None:
            key = next(ref.key for ref in made.manifest.inputs if ref.stage == "distill")
            student = store.find("distill", key)
            assert student is not None
            base = scores_of(Path(store.path(student.name("model"))), config, wanted.prompts)
        mine = scores_of(Path(store.path(made.name("model"))), config, wanted.prompts)
        won = (mine["layout"] > base["layout"]) + 0.5 * (mine["layout"] == base["layout"])
        details = made.manifest.details
        lines.append(
            f"| {title} | {details['scale']:g} | {percent(won)} | "
            f"{percent(mine['attributes'] - base['attributes'])} |"
        )
    print("| adapters | scale | wins by colour and layout, % | attribute accuracy, points |")
    print("|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
