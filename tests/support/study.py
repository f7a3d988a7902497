"""Prompts of a comparison, and a large study."""

from __future__ import annotations

from stages.compare.study import (
    Study,
    StudyPrompt,
)

PROMPTS = [f"prompt number {i}" for i in range(10)] + ["<script>document.title = 'gone'</script>"]
BOTH = ("quality", "alignment")


def big_study(prompts=128) -> Study:
    samples = {f"{i:04d}": StudyPrompt(f"p{i}", 64, 64) for i in range(prompts)}
    return Study("e", {"teacher": "T", "student_4": "S", "tuned_4": "U"}, BOTH, samples)
