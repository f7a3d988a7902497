"""The whole graph on one screen. A new stage is one file in `stages/` and one entry here.

The declaration is used twice: for planning with plain nodes, without Ray, and for running with
Ray's remote functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.base.stage import Stage

if TYPE_CHECKING:
    from schemas.config import PipelineConfig


def _pictures_from(config: PipelineConfig) -> tuple[str, ...] | None:
    """External data replace the synthesized pictures."""
    return None if config.encode.external is not None else ("prompts",)


def _latents_from(config: PipelineConfig) -> tuple[str, ...]:
    return () if config.encode.external is not None else ("synthesize",)


def _pairs_from(config: PipelineConfig) -> tuple[str, ...]:
    """The student is an input only if it samples the pairs."""
    student_samples = config.pairs.model == "student" and config.pairs.url is None
    return ("prompts", "distill") if student_samples else ("prompts",)


def _evaluated(config: PipelineConfig) -> tuple[str, ...]:
    return ("prompts", "distill", "dpo") if config.eval.tuned else ("prompts", "distill")


def _always(*stages: str) -> Callable[[PipelineConfig], tuple[str, ...]]:
    return lambda _: stages


_ENTRIES = (
    Stage("prompts", 1, ("prompts", "teacher"), _always(), "prompts"),
    Stage(
        "synthesize",
        1,
        ("synthesize", "teacher"),
        _pictures_from,
        "pictures",
        in_shards=True,
        data=("shards/*.tar",),
    ),
    Stage(
        "encode",
        2,
        ("encode", "prompts.buckets", "prompts.held_out_fraction", "teacher"),
        _latents_from,
        "latents",
        in_shards=True,
        data=("latents/*.npy", "shards/prompts/*.npy"),
    ),
    Stage(
        "distill",
        3,
        ("distill", "teacher"),
        _always("prompts", "encode"),
        "student",
        taken=(
            *("distill.steps", "distill.decay_share"),
            *("distill.look", "distill.choose", "distill.choose_by"),
        ),
    ),
    Stage(
        "pairs",
        2,
        ("pairs", "synthesize", "teacher"),
        _pairs_from,
        "preference pairs",
        in_shards=True,
        data=("shards/*.tar",),
    ),
    Stage(
        "dpo",
        1,
        ("dpo", "teacher"),
        _always("prompts", "pairs", "distill"),
        "tuned student",
        taken=("dpo.steps", "dpo.scales", "dpo.chooser", "dpo.chooser_prompts"),
    ),
    Stage(
        "eval",
        1,
        ("eval", "synthesize", "teacher"),
        _evaluated,
        "evaluated student",
        in_shards=True,
        reads_lineage=True,
    ),
)
"""In execution order: each stage comes after its inputs."""

STAGES = {stage.name: stage for stage in _ENTRIES}


def left_out(config: PipelineConfig) -> set[str]:
    """The stages that run only if they are asked for: tuning that nothing evaluates."""
    return set() if config.eval.tuned else {"dpo"}


def declare(node_of: Callable[[str], Any], config: PipelineConfig) -> dict[str, Any]:
    """Bind the stages to each other; `node_of(name)` returns an object with Ray's `.bind()`."""
    nodes: dict[str, Any] = {}
    for name, stage in STAGES.items():
        inputs = stage.inputs(config)
        if inputs is not None:
            nodes[name] = node_of(name).bind(*(nodes[above] for above in inputs))
    return nodes
