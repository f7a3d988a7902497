"""Makes the trainings of docs/health.md, a good one and one of each bad sort, and draws them.

    python benchmarks/health_runs.py --store S --out docs/health

All use the pictures of one store and short trainings on the embedded teacher. A training that is in
the store is not made again, so a stopped script goes on. Writes a plot and the last sample grid of
each training, and `runs.json` with the signs that the watch saw.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.base.store import Artifact, ArtifactStore
from pipeline.commands.opening import open_config
from pipeline.machine import usable_cpus
from pipeline.observe import Observer
from pipeline.sweep import Trial, run_trials
from schemas.errors import LaddError
from stages.judging.summary import read_trace
from stages.ladd.health import WINDOW, HealthWatch

COMMON = ("distill.steps=150", "distill.global_batch=16", "distill.sample_prompts=3")
"""Settings of all trainings, where a case does not change them."""

LOOK = (
    "{every: 40, prompts: 64, scores: [{name: attributes}], features: {name: judge_features}, "
    "micro_batch: 32}"
)


@dataclass(frozen=True)
class Case:
    """A training of the page."""

    title: str
    settings: tuple[str, ...]
    sign: str | None
    """The sign that the watch is to see; None for no sign."""

    @property
    def command(self) -> str:
        """What makes it."""
        flags = " ".join(f"--set {shlex.quote(setting)}" for setting in self.all_settings)
        return f"ladd-pipeline run --preset shapes --until distill {flags}"

    @property
    def all_settings(self) -> tuple[str, ...]:
        own = {setting.partition("=")[0] for setting in self.settings}
        return tuple(s for s in COMMON if s.partition("=")[0] not in own) + self.settings


CASES = {
    "good": Case("a good run", (), None),
    "heads-win": Case(
        "heads that win",
        ("distill.discriminator.learning_rate=3e-3", "distill.learning_rate=3.6e-5"),
        "ahead",
    ),
    "heads-know-nothing": Case(
        "heads that know nothing", ("distill.discriminator.learning_rate=3e-7",), "ignorance"
    ),
    "drift": Case(
        "a student that drifts",
        (
            "distill.renoise.mean=5",
            "distill.renoise.std=0.5",
            "distill.steps=200",
            f"distill.look={LOOK}",
        ),
        "drift",
    ),
    "rate-times-ten": Case("a rate ten times too high", ("distill.learning_rate=3.6e-3",), "haste"),
}


def signs_in(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The signs that the watch sees in a trace, and the updates at which it does."""
    watch = HealthWatch()
    return [
        {"update": row["step"], "sign": sign.name, "text": sign.text}
        for row in rows
        for sign in watch.observe(row)
    ]


def draw(case: Case, rows: list[dict[str, Any]], good: list[dict[str, Any]], path: Path) -> None:
    """Plot logits and gradient norms by update, the good run's in grey, and the signs as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same curves give the same bytes
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    panels = (
        ("mean logit", {"real_logit": "#2f6f4f", "fake_logit": "#c98a2b"}),
        ("gradient norm", {"student_grad_norm": "#7a4b8c", "heads_grad_norm": "#3b6ea5"}),
    )
    for axis, (title, colours) in zip(axes, panels, strict=True):
        for name, colour in colours.items():
            for trace, shade, label in ((good, "#bbbbbb", None), (rows, colour, name)):
                points = [(row["step"], row[name]) for row in trace if name in row]
                axis.plot(*zip(*points, strict=True), color=shade, label=label, linewidth=1.1)
        for sign in signs_in(rows):
            axis.axvline(sign["update"], color="#b03a2e", linestyle="--", linewidth=1)
            axis.annotate(
                sign["sign"],
                (sign["update"], 1),
                xycoords=("data", "axes fraction"),
                va="top",
                color="#b03a2e",
            )
        axis.set_title(f"{case.title}: {title}", fontsize=10)
        axis.set_xlabel("update")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    axes[1].set_yscale("log")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def summary(case: Case, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What runs.json says of a training."""
    last = [row for row in rows if "student_grad_norm" in row][-WINDOW:]
    names = ("real_logit", "fake_logit", "student_loss", "discriminator_loss", "student_grad_norm")
    return {
        "command": case.command,
        "signs": signs_in(rows),
        f"means of the last {WINDOW} updates": {
            name: round(fmean(row[name] for row in last), 3) for name in names
        },
    }


def trained(store: ArtifactStore, names: list[str], at_once: int) -> dict[str, Artifact]:
    """The trainings of these cases, made where the store lacks them. Says which failed."""
    cpus = f"distill.cpus_per_worker={max(1, usable_cpus() // at_once)}"
    trials = {}
    for name in names:
        settings = [f"store={store.url}", cpus, *CASES[name].all_settings]
        trials[name] = Trial((name,), open_config(preset="shapes", settings=settings))
    made = {}
    with Observer("text") as observer:
        for trial, result in run_trials("distill", list(trials.values()), store, observer, at_once):
            if isinstance(result, LaddError):
                print(f"{trial.name} failed: {result}", flush=True)
            else:
                made[trial.name] = result
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="a folder; kept between runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for plots and pictures")
    parser.add_argument("--at-once", type=int, default=1, help="trainings to run in parallel")
    parser.add_argument("--only", choices=CASES, action="append", help="beside the good run")
    wanted = parser.parse_args()
    names = [name for name in CASES if not wanted.only or name in ("good", *wanted.only)]
    store = ArtifactStore(str(wanted.store.absolute()))
    made = trained(store, names, wanted.at_once)
    if "good" not in made:
        sys.exit("the good run is needed beside each of the others")
    traces = {name: read_trace(made[name]) for name in names if name in made}
    wanted.out.mkdir(parents=True, exist_ok=True)
    for name, rows in traces.items():
        draw(CASES[name], rows, traces["good"], wanted.out / f"{name}.svg")
        *_, grid = made[name].manifest.details["samples"]
        with made[name].checked(made[name].entry(grid)) as path:
            (wanted.out / f"{name}.png").write_bytes(path.read_bytes())
    runs = {name: summary(CASES[name], rows) for name, rows in traces.items()}
    (wanted.out / "runs.json").write_text(json.dumps(runs, indent=2) + "\n")
    unseen = []
    for name, run in runs.items():
        seen = [sign["sign"] for sign in run["signs"]]
        print(f"{CASES[name].title}: {', '.join(seen) or 'no sign'}")
        if CASES[name].sign not in (seen or [None]):
            unseen.append(name)
    if unseen or len(made) < len(names):
        sys.exit(f"not as the page says: {', '.join([*unseen, *(set(names) - set(made))])}")


if __name__ == "__main__":
    main()
