"""The whole graph on one screen. A new stage is one file in stages/ and two lines here.

The declaration is read twice: with plain nodes to plan (no Ray needed), with Ray's remote functions
to run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.stage import Stage
from schemas.config import PipelineConfig

STAGES = {
    stage.name: stage
    for stage in (
        Stage("prompts", version=1, sections=("prompts", "teacher")),
        Stage("synthesize", version=1, sections=("synthesize", "teacher")),
        Stage(
            "encode",
            version=2,
            sections=("encode", "prompts.buckets", "prompts.held_out_fraction", "teacher"),
        ),
        Stage("distill", version=3, sections=("distill", "teacher")),
        Stage("pairs", version=2, sections=("pairs", "synthesize", "teacher")),
        Stage("dpo", version=1, sections=("dpo", "teacher")),
        Stage("eval", version=1, sections=("eval", "synthesize", "teacher")),
    )
}


def declare(stage: Callable[[str], Any], config: PipelineConfig) -> dict[str, Any]:
    """Bind the stages to each other; `stage(name)` gives something with Ray's `.bind()`."""
    prompts = stage("prompts").bind()
    if config.encode.external is None:
        pictures = stage("synthesize").bind(prompts)
        latents = stage("encode").bind(pictures)
    else:
        pictures = None
        latents = stage("encode").bind()
    student = stage("distill").bind(prompts, latents)
    drawn_by_student = config.pairs.model == "student" and config.pairs.url is None
    pairs = stage("pairs").bind(*((prompts, student) if drawn_by_student else (prompts,)))
    tuned = stage("dpo").bind(prompts, pairs, student)
    judged = stage("eval").bind(prompts, student, tuned)
    nodes = {
        "prompts": prompts,
        "synthesize": pictures,
        "encode": latents,
        "distill": student,
        "pairs": pairs,
        "dpo": tuned,
        "eval": judged,
    }
    return {name: node for name, node in nodes.items() if node is not None}
