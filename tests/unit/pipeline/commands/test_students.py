"""`score` needs something to judge."""

from __future__ import annotations


def test_score_needs_a_prompt(call):
    code, output, _ = call("score", "--prompts", 0)
    assert code == 2
    assert "--prompts" in output
