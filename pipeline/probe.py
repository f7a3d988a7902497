"""Measures rates by a small run: a few samples of the configuration are really made, in a store of
their own that is removed at the end. What was measured stays in the real store
(`pipeline/rates.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from pipeline.base.lease import held
from pipeline.base.store import ArtifactStore
from pipeline.devices import Fleet, fleet_of
from pipeline.estimates import PROBE, Rate
from pipeline.executor import execute
from pipeline.observe import Observer
from pipeline.planning import PlannedStage, Selection, make_plan
from pipeline.rates import keep_rates, rate_of
from schemas.config import PipelineConfig
from schemas.errors import ConfigError

_BATCHES = 3
"""Micro-batches that each worker of a pool draws: the first one also warms up."""
_UPDATES = 4
_PROMPTS = 8
"""That an evaluation needs at least."""
_HELD_OUT = 0.25


def probe(
    config: PipelineConfig, store: ArtifactStore, stages: list[PlannedStage], observer: Observer
) -> None:
    """Run the stages that would run, and what they need, with few samples; keep the rates that they
    had. Raises ConfigError for what cannot be probed, and what a run raises.
    """
    running = [stage.name for stage in stages if stage.action == "run"]
    if not running:
        return
    fleet = fleet_of(config)
    _require_probing(config, fleet)
    rates: dict[str, Rate] = {}
    with _scratch(store) as small_store:
        small = small_config(config, small_store.url, fleet)
        wanted = Selection(until=_last(config, running))
        plan = make_plan(small, small_store, wanted)
        execute(small, small_store, plan, observer)
        for stage in plan:
            made = small_store.find(stage.name, stage.key)
            if made is None:
                continue
            if rate := rate_of(made.manifest, small_store, fleet, PROBE):
                rates[stage.name] = rate
    keep_rates(config, store, fleet, rates)


def small_config(config: PipelineConfig, store: str, fleet: Fleet) -> PipelineConfig:
    """Return the configuration with few samples in one bucket, its most frequent; what decides how
    long a sample takes stays.
    """
    workers = fleet.count
    tuned = config.dpo.workers * (
        config.dpo.micro_batch or -(-config.dpo.global_batch // config.dpo.workers)
    )
    drawn = _BATCHES * config.synthesize.micro_batch
    pictures = max(workers * drawn, config.distill.global_batch)
    two_batches = -(-2 * workers * config.pairs.micro_batch // config.pairs.pictures_per_prompt)
    pairs = max(2 * tuned, two_batches)
    needed = max(pictures, pairs + workers * config.pairs.micro_batch)
    bucket = max(config.prompts.buckets, key=lambda name: config.prompts.buckets[name])
    changes: dict[str, dict[str, Any]] = _trainings(config, tuned) | {
        "prompts": {
            "count": max(10 * _PROMPTS, round(1.2 * needed / (1 - _HELD_OUT))),
            "held_out_fraction": _HELD_OUT,
            "images_per_prompt": 1,
            "buckets": {bucket: 1.0},
            "samples_per_shard": drawn,
        },
        "synthesize": {"count": pictures},
        "pairs": {
            "prompts": pairs,
            "margin": 0.0,
            "held_out_fraction": 0.0,
            "prompts_per_shard": -(-pairs // workers),
        },
        "eval": {
            "prompts": _PROMPTS,
            "url": None,
            "floor": False,
            "alike_prompts": 1,
            "alike_seeds": 2,
            "bootstrap": 100,
            "gates": {},
            "wall_prompts": 1,
            "prompts_per_shard": _PROMPTS,
        },
    }
    content = config.model_dump(mode="json")
    for section, fields in changes.items():
        content[section] |= fields
    content |= {"name": "probe", "store": store, "trackers": []}
    return PipelineConfig.model_validate(content)


def _trainings(config: PipelineConfig, pairs: int) -> dict[str, dict[str, Any]]:
    """Return what changes of `distill` and `dpo`: a few updates, of so many pairs each."""
    distill = config.distill
    return {
        "distill": {
            "steps": _UPDATES,
            "decay_share": 0.0,
            "init": None,
            "look": None,
            "choose": "last",
            "sample_prompts": 0,
            "log_every": 1,
            "checkpoint_every": 10**6,
            "keep_every": None,
            "student_time": {**distill.student_time.model_dump(), "warmup_steps": 0},
            "discriminator": {**distill.discriminator.model_dump(), "head_start_steps": 0},
        },
        "dpo": {
            "steps": _UPDATES,
            "global_batch": pairs,
            "watch_every": 10**6,
            "log_every": 1,
            "checkpoint_every": 10**6,
            "keep_every": None,
            "scales": [1.0],
            "chooser_prompts": 2 * config.pairs.micro_batch,
        },
    }


def _require_probing(config: PipelineConfig, fleet: Fleet) -> None:
    is_cluster = config.ray.is_joined
    if config.costs.device is not None and not is_cluster:
        raise ConfigError(
            "--probe measures this machine, but costs.device says what to plan for; leave it out, "
            "or join the cluster that has such devices (ray.address)"
        )
    if config.costs.device is None and is_cluster:
        raise ConfigError(
            "--probe: say in costs.device and costs.devices what the cluster has, so that its "
            "rates are found again"
        )
    if config.encode.external is not None:
        raise ConfigError(
            "--probe cannot time external shards (encode.external); run encode on a few of them in "
            "this store first, and plan uses that rate"
        )


def _last(config: PipelineConfig, running: list[str]) -> str:
    """Return the last stage to probe. Pairs from files are as many as these hold."""
    if config.pairs.url is not None and {"pairs", "dpo", "eval"} & {*running}:
        return "distill"
    return running[-1]


@contextlib.contextmanager
def _scratch(store: ArtifactStore) -> Iterator[ArtifactStore]:
    """Give a store for the small run, which is removed at the end: where all workers reach it. In a
    bucket its lease says that the probe is alive: `artifacts gc` removes what a killed one leaves.
    """
    if store.is_local:
        with tempfile.TemporaryDirectory(prefix="ladd-probe-") as folder:
            yield ArtifactStore(folder)
        return
    name = f"probes/{uuid4().hex}"
    try:
        with held(store, name, "plan --probe"):
            yield ArtifactStore(f"{store.url.rstrip('/')}/{name}")
    finally:
        store.remove(name)
