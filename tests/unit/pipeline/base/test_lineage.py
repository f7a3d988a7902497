"""From an artifact back to all that it was made from."""

from __future__ import annotations

from pipeline.base.lineage import ancestors
from tests.support.held_out import configured, evaluation_context


def test_lineage_reaches_back_to_the_prompts(tmp_path):
    context = evaluation_context(tmp_path, configured(), ["a white cross"], [])
    stages = list(ancestors(context.inputs.values()))
    assert set(stages) == {"prompts", "encode", "distill", "pairs", "dpo"}
    assert stages.index("encode") < stages.index("distill") < stages.index("dpo")
