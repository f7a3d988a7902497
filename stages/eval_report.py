"""From the shards of an evaluation to its report: means with intervals, distances, win rates,
gates.
"""

from __future__ import annotations

import json
import operator
import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import bootstrap

from pipeline.shards import read_tar
from pipeline.stage import StageContext
from pipeline.store import Artifact
from schemas.config import EvalConfig, PipelineConfig
from schemas.errors import ConfigError
from schemas.records import ShardStats
from schemas.report import (
    Curve,
    GateResult,
    Interval,
    LineageStep,
    Report,
    ScoreCard,
    SystemResult,
    WallPicture,
    WinRate,
)
from schemas.suggest import did_you_mean
from stages.scores import card_of
from stages.scores.diversity import intra_prompt_diversity
from stages.scores.frechet import frechet_distance
from stages.scores.kernel import cmmd, kid
from stages.scores.manifold import precision_recall

DISTANCES = ("fid", "patch_fid", "kid", "cmmd", "precision", "recall")
_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
_DEMAND = re.compile(r"\s*(>=|<=|>|<)\s*(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*")
_CURVE_POINTS = 300


def check_gates(config: PipelineConfig, systems: list[str]) -> None:
    """Raises ConfigError for a gate that names no system or measure, or whose demand is no
    comparison.
    """
    measures = [score.name for score in config.eval.scores]
    measures += [*DISTANCES, "diversity", "seconds_per_picture"]
    for name, demand in config.eval.gates.items():
        system, _, measure = name.partition(".")
        if system not in systems:
            raise ConfigError(
                f"eval.gates: {name!r} names no system{did_you_mean(system, systems)}; there are "
                f"{', '.join(systems)}"
            )
        if measure not in measures:
            raise ConfigError(
                f"eval.gates: {name!r} names nothing that is measured"
                f"{did_you_mean(measure, measures)}; there are {', '.join(measures)}"
            )
        if not _DEMAND.fullmatch(demand):
            raise ConfigError(
                f"eval.gates: {name}: {demand!r} is not a demand such as '>= 0.85' or '< 3'"
            )


def make_report(
    context: StageContext,
    lineage: dict[str, Artifact],
    systems: list[Any],
    shards: dict[str, list[dict[str, Any]]],
    done: dict[str, ShardStats],
) -> tuple[Report, dict[tuple[str, str], bytes]]:
    """The report, and the PNGs of its sample wall by sample key and system. The first of `systems`
    is what the others are measured against.
    """
    config = context.config
    drawn = {system.name: _Drawn(context, system.name, shards) for system in systems}
    reference = drawn[systems[0].name]
    times = done["shards/timing"].details["seconds_per_picture"]
    results = []
    for system in systems:
        mine = drawn[system.name]
        results.append(
            SystemResult(
                name=system.name,
                title=system.title,
                kind=system.kind,
                steps=system.steps,
                guidance_scale=(
                    config.synthesize.guidance_scale if system.kind == "teacher" else None
                ),
                scores={s: interval_of(v, config.eval) for s, v in mine.scores.items()},
                by_bucket={
                    bucket: mine.means("bucket", bucket) | mine.distance_in(bucket, reference)
                    for bucket in mine.values_of("bucket")
                },
                by_category={c: mine.means("category", c) for c in mine.values_of("category")},
                distances=mine.distances(reference),
                diversity=intra_prompt_diversity(mine.alike_PSD),
                seconds_per_picture=times[system.name],
            )
        )
    gates = [_gate(name, demand, results) for name, demand in config.eval.gates.items()]
    cards = {score.name: card_of(score) for score in config.eval.scores}
    wall = _wall(reference.rows, config.eval.wall_prompts)
    report = Report(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        headline=_headline(results, cards),
        passed=all(gate.passed for gate in gates),
        teacher=config.teacher.model or f"{config.teacher.family} (embedded)",
        prompts=len(reference.rows),
        cards=cards,
        feature_space=card_of(config.eval.features),
        systems=results,
        win_rates=list(_win_rates(drawn, systems, config.eval)),
        gates=gates,
        curves=[*_curves(lineage["distill"]), *_curves(lineage["dpo"])],
        data=_data(lineage),
        tuning={"adapter scale": lineage["dpo"].manifest.details["scales"]},
        wall=wall,
        lineage=[_step(artifact) for artifact in lineage.values()],
        environment=lineage["distill"].manifest.environment,
    )
    keys = [picture.key for picture in wall]
    pictures = {
        (key, system): png for system, mine in drawn.items() for key, png in mine.read(keys).items()
    }
    return report, pictures


class _Drawn:
    """What one system drew: rows, scores (n,) and features (n, D) in one order of samples."""

    def __init__(self, context: StageContext, system: str, shards: dict[str, Any]) -> None:
        self._context = context
        mine = [shard for shard in sorted(shards) if shard.split("/")[1] == system]
        self._shards = [shard for shard in mine if "/alike-" not in shard]
        self.rows: list[dict[str, Any]] = []
        for shard in self._shards:
            with context.store.local(f"{context.folder}/{shard}.parquet") as path:
                self.rows += pq.read_table(path).to_pylist()
        names = [score.name for score in context.config.eval.scores]
        self.scores = {name: np.array([row[name] for row in self.rows]) for name in names}
        self.features = np.concatenate([self._load(s, "features") for s in self._shards])
        self.patches = np.concatenate([self._load(s, "patches") for s in self._shards])
        seeds = context.config.eval.alike_seeds
        alike = [self._load(shard, "features") for shard in mine if "/alike-" in shard]
        self.alike_PSD = np.concatenate(alike).reshape(-1, seeds, self.features.shape[1])

    def _load(self, shard: str, what: str) -> np.ndarray:
        with self._context.store.local(f"{self._context.folder}/{shard}.{what}.npy") as path:
            return np.load(path, allow_pickle=False)

    def values_of(self, column: str) -> list[str]:
        return sorted({row[column] for row in self.rows})

    def mask(self, column: str, value: str) -> np.ndarray:
        return np.array([row[column] == value for row in self.rows])

    def means(self, column: str, value: str) -> dict[str, float]:
        mask = self.mask(column, value)
        return {name: float(values[mask].mean()) for name, values in self.scores.items()}

    def distance_in(self, bucket: str, reference: _Drawn) -> dict[str, float]:
        """The Fréchet distance within a bucket; nothing where there are too few pictures."""
        mask = self.mask("bucket", bucket)
        if mask.sum() < 2:
            return {}
        return {"fid": frechet_distance(self.features[mask], reference.features[mask])}

    def distances(self, reference: _Drawn) -> dict[str, float]:
        precision, recall = precision_recall(reference.features, self.features)
        values = (
            frechet_distance(self.features, reference.features),
            frechet_distance(self.patches, reference.patches),
            kid(self.features, reference.features),
            cmmd(self.features, reference.features),
            precision,
            recall,
        )
        return dict(zip(DISTANCES, map(float, values), strict=True))

    def read(self, keys: list[str]) -> dict[str, bytes]:
        found = {}
        for shard in self._shards:
            with self._context.store.local(f"{self._context.folder}/{shard}.tar") as path:
                found |= {k: m["png"] for k, m in read_tar(path, shard) if k in keys}
        return found


def interval_of(values: np.ndarray, config: EvalConfig) -> Interval:
    """The mean of (n,) values, one a prompt, with its 95 % percentile bootstrap interval."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean=mean, low=mean, high=mean)
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=config.bootstrap,
        method="percentile",
        batch=256,
        rng=np.random.default_rng(config.seed),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high))


def _win_rates(drawn: dict[str, _Drawn], systems: list[Any], config: EvalConfig) -> Any:
    """Students against the teacher at equal steps and at its own, the tuned against the untuned."""
    names = set(drawn)
    for system in systems:
        if system.kind == "teacher":
            continue
        rivals = [systems[0].name, f"teacher_{system.steps}"]
        if system.kind == "tuned":
            rivals.append(f"student_{system.steps}")
        for rival in dict.fromkeys(name for name in rivals if name in names):
            for score, mine in drawn[system.name].scores.items():
                theirs = drawn[rival].scores[score]
                won = (mine > theirs) + 0.5 * (mine == theirs)
                yield WinRate(
                    system=system.name, against=rival, score=score, rate=interval_of(won, config)
                )


def _gate(name: str, demand: str, results: list[SystemResult]) -> GateResult:
    system, _, measure = name.partition(".")
    result = next(r for r in results if r.name == system)
    values = {s: interval.mean for s, interval in result.scores.items()} | result.distances
    values |= {
        "diversity": result.diversity,
        "seconds_per_picture": result.seconds_per_picture,
    }
    match = _DEMAND.fullmatch(demand)
    assert match is not None  # check_gates
    passed = _COMPARE[match[1]](values[measure], float(match[2]))
    return GateResult(
        name=name,
        demand=demand,
        value=values[measure],
        passed=passed,
        misses_by=0.0 if passed else abs(values[measure] - float(match[2])),
    )


def _headline(results: list[SystemResult], cards: dict[str, ScoreCard]) -> str:
    score, card = next(iter(cards.items()))
    teacher, last = results[0], results[-1]
    percent = card.low == 0 and card.high == 1

    def show(result: SystemResult) -> str:
        value = result.scores[score].mean
        return f"{100 * value:.1f} %" if percent else f"{value:.3g}"

    return (
        f"In {last.steps} step{'s'[: last.steps > 1]} the {last.kind} student reaches {show(last)} "
        f"in {card.title.lower()}, the teacher {show(teacher)} in {teacher.steps}; it is "
        f"{teacher.seconds_per_picture / last.seconds_per_picture:.1f} times as fast."
    )


def _wall(rows: list[dict[str, Any]], count: int) -> list[WallPicture]:
    """The first rows of each bucket in turn."""
    buckets = defaultdict(list)
    for row in rows:
        buckets[row["bucket"]].append(row)
    turns = [row for i in range(count) for b in sorted(buckets) for row in buckets[b][i : i + 1]]
    fields = ("key", "prompt", "bucket", "category")
    return [WallPicture(**{name: row[name] for name in fields}) for row in turns[:count]]


def _curves(trained: Artifact) -> list[Curve]:
    """A training's metrics, thinned to means of equal stretches."""
    with trained.checked(trained.entry("metrics.jsonl")) as path:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                points[name].append((row["step"], float(value)))
    curves = []
    for name, pairs in points.items():
        parts = np.array_split(np.array(pairs), min(len(pairs), _CURVE_POINTS))
        curves.append(
            Curve(
                stage=trained.manifest.stage,
                name=name,
                steps=[int(part[-1, 0]) for part in parts],
                values=[float(part[:, 1].mean()) for part in parts],
            )
        )
    return curves


def _data(lineage: dict[str, Artifact]) -> dict[str, dict[str, int]]:
    prompts = lineage["prompts"].manifest.counts
    prefix = "bucket_"
    encoded = lineage["encode"].manifest.details["buckets"]
    tables = {
        "prompts": {name: n for name, n in prompts.items() if not name.startswith(prefix)},
        "prompts by bucket": {
            name.removeprefix(prefix): n for name, n in prompts.items() if name.startswith(prefix)
        },
        "training latents by bucket": {
            bucket: sum(part["rows"] for part in parts) for bucket, parts in encoded.items()
        },
    }
    for stage, heading in (("synthesize", "synthesized pictures"), ("pairs", "preference pairs")):
        if stage in lineage:
            tables[heading] = dict(lineage[stage].manifest.counts)
    return tables


def _step(artifact: Artifact) -> LineageStep:
    manifest = artifact.manifest
    return LineageStep(
        stage=manifest.stage,
        key=manifest.key,
        inputs=[ref.key for ref in manifest.inputs],
        started=manifest.started,
        seconds=manifest.seconds,
        device_hours=manifest.device_hours,
        counts=manifest.counts,
    )
